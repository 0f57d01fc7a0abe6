# SPDX-License-Identifier: Apache-2.0
"""The paper's curation pipeline: from videos to questions with answers and reasoning.

    videos ─> select ─> caption ─> write ─> check ─> blind ─> trace ─────> clean ─> samples.jsonl
              rules     VLM        LLM      rules    LLM      reasoning    rules
                                                              model
    every item that enters a stage leaves it kept, rejected with a reason, or unfinished  ─> rejected.jsonl
    every request goes through endpoint.py ─> store.py (answers, attempts, money spent)    ─> report.json

The store is the only state. A run computes everything anew from it, so killing one at any moment loses at
most the requests that were in flight, and a second run of a finished one makes no request and writes the
same bytes.
"""
