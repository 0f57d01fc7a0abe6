# SPDX-License-Identifier: Apache-2.0
"""nano's tokenizer: byte-level BPE in Qwen's layout, learned from this project's own prompts and answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cosmos_reason_node import prompt
from training.data.sim import kinds
from training.data.sim.episode import Episode
from training.data.sim.kinds import vocabulary
from training.data.sim.physics.run import run_clip
from training.data.sim.questions import questions
from training.data.sim.sample import SimSample, Span
from training.data.sim.scenes import SCENES

VOCABULARY_SIZE = 2048  # at most; learning ends when every word is whole
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# How Qwen2 cuts text before merging: words with one leading blank, single digits, punctuation, line breaks.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS_ROUNDS = 40
_CORPUS_CLIPS, _CLIP_WINDOWS = 120, 6
_LEAST = 8  # times that a pair of pieces occurs before it becomes one
# Words that robots are asked about beyond the simulated tasks, so that they are not spelled byte by byte.
_COMMON = (
    "the a an is are was has have in on at to of and or not it this that what which where how who",
    "robot arm gripper hand object table cup box block bottle plate bowl towel sink shelf door drawer window",
    "handle button lid pick place put push pull open close move lift turn grasp hold release reach left",
    "right",
    "up down front back next to red green blue yellow black white camera video frame task action goal first",
    "then before after now",
)


def corpus() -> Iterator[str]:
    """Pieces of text as they are tokenised: question, reasoning, answer, forced pieces."""
    rng = np.random.default_rng(0)
    for _ in range(_CORPUS_ROUNDS):
        for scene in SCENES:
            for openness in (0.0, 1.0):
                for gap in (0.0, 0.4):
                    yield from _texts(_still(scene.name, len(scene.skills), openness, gap), rng)
        yield from _COMMON
        yield " ".join(("", *vocabulary.words()))
    for seed in range(_CORPUS_CLIPS):
        clip = run_clip(seed, render=False)
        for _ in range(_CLIP_WINDOWS):
            yield from _pieces(kinds.questions_for(*kinds.draw(clip, rng), rng))
    letters = [prompt.letter(i) for i in range(prompt.MAX_OPTIONS)]
    for _ in range(_CORPUS_ROUNDS):
        yield from ("yes", "no", "Yes", "No", *letters)
        yield " ".join(("", "yes", "no", "Yes", "No", *letters))


def _still(scene: str, skills: int, openness: float, gap: float) -> Episode:
    """A made-up pair of frames in a given state."""
    return Episode(
        seed=0,
        split="train",
        scene=scene,
        plan="",
        task="",
        frames=np.zeros((2, 1, 1, 3), np.uint8),
        openness=np.full(2, openness, np.float32),
        gap_m=np.full((2, skills, 3), gap, np.float32),
        points=np.zeros((2, 2, 2), np.float32),
    )


def _texts(episode: Episode, rng: np.random.Generator) -> Iterator[str]:
    yield from _pieces(questions(episode, Span(0, 2), rng))


def _pieces(samples: list[SimSample]) -> Iterator[str]:
    for sample in samples:
        yield prompt.prefix([0]) + prompt.suffix(sample.query)
        yield sample.reasoning
        yield sample.answer
    yield from (prompt.THINK_OPEN, prompt.THINK_CLOSE, prompt.ANSWER_CLOSE)


def train_tokenizer(size: int = VOCABULARY_SIZE) -> Tokenizer:
    """Learn the vocabulary; deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL_TOKENS),
        min_frequency=_LEAST,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    control = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    # The corpus spells control tokens out; they must not be learned as text.
    plain = (piece for text in corpus() for piece in _without_control(text))
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.add_special_tokens(control)
    return tokenizer


def _without_control(text: str) -> list[str]:
    for token in SPECIAL_TOKENS:
        text = text.replace(token, "\0")
    return [piece for piece in text.split("\0") if piece]


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and the files by which transformers' AutoTokenizer loads it."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
