# SPDX-License-Identifier: Apache-2.0
import math
import random

import numpy as np
import pytest

from cosmos_reason_node import decision, prompt
from cosmos_reason_node.engine.grammar import Branch, ChoiceStep, FreeStep, TextStream, Vocabulary
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.types import Query, QueryKind, Verdict
from tests import tiny_model

COMPLETION = Query(QueryKind.COMPLETION, task="open the drawer")
OPTIONS = Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach", "pull", "push"))
FREE = Query(QueryKind.QUESTION, question="what is there?")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tiny_model.build_tokenizer().save(str(path))
    return TextTokenizer(path)


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return Vocabulary(tokenizer, len(tokenizer) + 12)


def say(branch, tokens):
    """Drive a branch with the tokens a model would choose; return the text streamed and the tokens fed."""
    tokens, text, fed = iter(tokens), "", []
    while not branch.done:
        fed += branch.take()
        step = branch.step()
        if isinstance(step, ChoiceStep):
            text += branch.choose(0, 0.9)
        else:
            token = next(tokens)
            assert not step.forbidden[token]
            text += branch.push(token, -0.5)
    return text, fed + branch.take()


def test_no_thinking_is_one_forced_chunk_then_the_verdict(vocabulary, tokenizer):
    branch = Branch(vocabulary, COMPLETION, 0, 8)
    assert branch.take() == vocabulary.think_open + vocabulary.think_close
    assert isinstance(branch.step(), ChoiceStep)
    assert branch.choose(1, 0.8) == "no"
    assert branch.done
    answer = branch.result(100, 0.55)
    assert (answer.verdict, answer.answer, answer.confidence) == (Verdict.NO, "no", 0.8)
    assert answer.output_tokens == len(prompt.encode_target(tokenizer, "", "no"))
    assert not answer.think_closed_by_budget


@pytest.mark.parametrize("reasoning", ["the gripper moves left.", "line one\nline two < 3"])
@pytest.mark.parametrize("query", [COMPLETION, OPTIONS, FREE])
def test_a_trained_output_passes_token_by_token(vocabulary, tokenizer, reasoning, query):
    answer = {COMPLETION: "yes", OPTIONS: "A", FREE: "a drawer, closed"}[query]
    target = prompt.encode_target(tokenizer, reasoning, answer)
    until_tag = vocabulary.think_close[: _until_tag(tokenizer, vocabulary.think_close)]
    model = tokenizer.encode(reasoning) + until_tag
    if query is FREE:
        model += tokenizer.encode(answer) + vocabulary.answer_close
    branch = Branch(vocabulary, query, 200, 50)
    text, fed = say(branch, model)
    result = branch.result(10, 0.5)
    assert result.reasoning == reasoning
    assert result.answer == answer
    assert text == reasoning + "\n" + answer + ("\n" if query is FREE else "")
    closing = len(vocabulary.answer_close)
    assert fed[: len(target) - closing] == target[:-closing]
    if query is not FREE:  # a free answer's closing tag is the model's own, up to where it is recognised
        assert fed == target


def _until_tag(tokenizer, ids):
    return next(n for n in range(1, len(ids) + 1) if "</think>" in tokenizer.decode(ids[:n]))


@pytest.mark.parametrize(
    "spelling", [["</", "think", ">"], ["\n", "<", "/", "t", "hink>"], ["\n</think>!!"], [" </think", "> so"]]
)
def test_any_spelling_of_the_tag_closes(vocabulary, tokenizer, spelling):
    model = tokenizer.encode("it moves") + [token for piece in spelling for token in tokenizer.encode(piece)]
    branch = Branch(vocabulary, COMPLETION, 60, 8)
    _, fed = say(branch, model)
    text = tokenizer.decode(fed)
    assert decision.parse_output(text, COMPLETION).reasoning == "it moves"
    assert text.endswith("</think>\n\n<answer>\nyes\n</answer><|im_end|>")


def test_budget_closes(vocabulary, tokenizer):
    words = tokenizer.encode("the gripper moves left and left and left and left")
    branch = Branch(vocabulary, COMPLETION, 5, 8)
    _, fed = say(branch, words)
    result = branch.result(10, 0.5)
    assert result.think_closed_by_budget
    assert result.reasoning == tokenizer.decode(words[:5]).strip()
    assert fed == prompt.encode_target(tokenizer, tokenizer.decode(words[:5]), "yes")


def test_budget_in_the_middle_of_the_tag(vocabulary, tokenizer):
    words = tokenizer.encode("it moves") + tokenizer.encode("</thi")
    branch = Branch(vocabulary, COMPLETION, len(words), 8)
    _, fed = say(branch, words)
    assert decision.parse_output(tokenizer.decode(fed), COMPLETION).reasoning == "it moves"
    assert branch.result(1, 0.5).reasoning == "it moves"


def test_end_of_turn_closes_what_is_open(vocabulary, tokenizer):
    end = vocabulary.end
    branch = Branch(vocabulary, FREE, 50, 50)
    _, fed = say(branch, [*tokenizer.encode("it moves"), end, *tokenizer.encode("a drawer"), end])
    assert tokenizer.decode(fed) == prompt.target("it moves", "a drawer")


def test_free_answer_confidence_is_the_geometric_mean_of_its_tokens(vocabulary, tokenizer):
    branch = Branch(vocabulary, FREE, 0, 50)
    branch.take()
    words = tokenizer.encode("a drawer")
    for i, token in enumerate(words):
        branch.push(token, -0.1 * (i + 1))
    for token in tokenizer.encode("</answer>"):
        branch.push(token, -9.0)  # how sure the model is that it is finished does not count
    result = branch.result(10, 0.55)
    assert result.verdict is Verdict.CHOICE
    assert result.confidence == pytest.approx(math.exp(-0.1 * (len(words) + 1) / 2))


def test_free_answer_budget_and_never_empty(vocabulary, tokenizer):
    branch = Branch(vocabulary, FREE, 0, 3)
    branch.take()
    mask = branch.step().forbidden
    for text in (" ", "\n", "<", "</"):
        assert mask[tokenizer.encode(text)[0]]
    assert mask[vocabulary.end]
    words = tokenizer.encode("reach push pull lift")
    say(branch, words)
    assert branch.result(1, 0.5).answer == tokenizer.decode(words[:3]).strip()


def test_control_and_padding_tokens_are_never_sampled(vocabulary, tokenizer):
    for mask in (vocabulary.in_text, vocabulary.at_answer_start):
        assert mask[len(tokenizer) :].all()
        for control in set(tiny_model.CONTROL) - {prompt.END_OF_TURN}:
            assert mask[tokenizer.id_of(control)]
    assert not vocabulary.in_text[tokenizer.encode(" robot")].any()


def test_unknown_when_nothing_wins(vocabulary):
    for query, confidence in ((COMPLETION, 0.51), (OPTIONS, 0.35)):  # three options: 0.4 is needed
        branch = Branch(vocabulary, query, 0, 8)
        branch.take()
        branch.choose(1, confidence)
        result = branch.result(10, 0.55)
        assert result.verdict is Verdict.UNKNOWN
        assert result.option_index == -1
        assert result.confidence == confidence


def test_options_are_letters(vocabulary, tokenizer):
    branch = Branch(vocabulary, OPTIONS, 0, 8)
    branch.take()
    step = branch.step()
    assert [tokenizer.encode(prompt.letter(i))[0] in step.groups[i] for i in range(3)] == [True] * 3
    assert len(step.groups) == 3
    branch.choose(2, 0.7)
    result = branch.result(10, 0.55)
    assert (result.verdict, result.answer, result.option_index) == (Verdict.CHOICE, "C", 2)


def test_a_tokenizer_that_cannot_tell_is_refused(tmp_path):
    from tokenizers import AddedToken, Tokenizer, models

    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CosmosReasonError) as caught:
        Vocabulary(TextTokenizer(tmp_path / "tokenizer.json"), 2)
    assert caught.value.code is ErrorCode.MODEL_INVALID


def test_stream_waits_for_whole_characters(tokenizer):
    stream = TextStream(tokenizer, "</think>")
    pushed = [stream.push(token) for token in tokenizer.encode("a – ü 手")]
    assert "".join(pushed) == "a – ü 手"
    assert "\ufffd" not in "".join(pushed)


def test_stream_does_not_wait_for_ever_on_broken_bytes(tokenizer):
    stream = TextStream(tokenizer, "</think>")
    lead = tokenizer.encode("手")[0]
    text = "".join(stream.push(lead) for _ in range(8))
    assert text


@pytest.mark.parametrize("seed", range(30))
def test_random_outputs_always_parse(vocabulary, tokenizer, seed):
    """A model that says anything the grammar lets it, fond of pieces of tags."""
    rng = random.Random(seed)
    tags = [token for text in ("</think>", "</answer>", "<answer>", "\n") for token in tokenizer.encode(text)]
    for query in (COMPLETION, OPTIONS, FREE):
        branch = Branch(vocabulary, query, rng.choice([0, 1, 7, 40]), rng.choice([1, 9, 30]))
        fed, streamed = [], ""
        while not branch.done:
            fed += branch.take()
            step = branch.step()
            if isinstance(step, FreeStep):
                allowed = np.flatnonzero(~step.forbidden)
                options = [token for token in tags if not step.forbidden[token]]
                pool = options if options and rng.random() < 0.6 else allowed
                streamed += branch.push(int(rng.choice(list(pool))), -1.0)
            else:
                streamed += branch.choose(rng.randrange(len(step.groups)), 1.0)
        fed += branch.take()
        result = branch.result(10, 0.0)
        assert len(fed) == result.output_tokens
        text = (
            f"{prompt.THINK_OPEN}{result.reasoning}{prompt.THINK_CLOSE}{result.answer}{prompt.ANSWER_CLOSE}"
        )
        parsed = decision.parse_output(text, query)
        assert (parsed.verdict, parsed.option_index) == (result.verdict, result.option_index)
        assert parsed.answer == result.answer
        assert "</think>" not in streamed
        assert "</answer>" not in streamed
        if query is not FREE:  # a free answer's own closing tag is not fed, so only its text is compared
            said = decision.parse_output(tokenizer.decode(fed), query)
            assert said.reasoning == result.reasoning
