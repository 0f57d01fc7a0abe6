# SPDX-License-Identifier: Apache-2.0
"""Makes the nano checkpoint from nothing, stage by stage; every stage goes on where it was interrupted.

python -m training.nano generate     simulated episodes and clips        -> build/nano/{episodes,clips}
python -m training.nano train        tokenizer, vision tower, answers    -> build/nano/model
python -m training.nano evaluate     held-out episodes and clips         -> build/nano/{eval,model/eval.json}
python -m training.nano diagnose     what goes wrong with which object   -> two tables
python -m training.nano compare      before and after the second stage   -> build/nano/rl/{eval,none}, tables
python -m training.nano clip         the demo clip                       -> tests/assets/drawer_open.mp4
python -m training.nano init         random weights (for engine tests)   -> build/nano-untrained
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cosmos_reason_node.models.checkpoint import check_files
from training.eval.__main__ import checkpoint_name, positive
from training.eval.__main__ import main as evaluate

WORK = Path("build/nano")
CLIP = Path("tests/assets/drawer_open.mp4")
CLIP_SEED = 1_900_004
THINK_TOKENS = 96  # nano's reasoning is a sentence or two


def _generate(options: argparse.Namespace) -> None:
    from training.data.sim.generate import Counts, generate

    from .source import HELD_OUT_TASKS

    counts = Counts(
        options.train,
        options.galleries,
        options.held_out,
        options.clips,
        options.held_out_clips,
        options.validation,
        options.validation_clips,
    )
    made = generate(WORK, counts, options.processes, HELD_OUT_TASKS)
    print(f"{made} files made, in {WORK}/episodes and {WORK}/clips")


def _train(options: argparse.Namespace) -> None:
    from .architecture import describe, describe_as
    from .train import (
        ANSWER_RECIPE,
        FINISH_RECIPE,
        OPTIONS_RECIPE,
        SHARPEN_RECIPE,
        STAGES,
        VISION_RECIPE,
        TrainJob,
        check,
        train,
        with_steps,
    )

    job = TrainJob(
        data=WORK,
        work=WORK / "work",
        output=options.out,
        vision=with_steps(VISION_RECIPE, options.vision_steps),
        answers=with_steps(ANSWER_RECIPE, options.answer_steps),
        sharpen=with_steps(SHARPEN_RECIPE, options.sharpen_steps),
        finish=with_steps(FINISH_RECIPE, options.finish_steps),
        options=with_steps(OPTIONS_RECIPE, options.option_steps),
        processes=options.processes,
        stages=tuple(options.stages or STAGES),
        start=options.start_from,
    )
    check(job)
    if not (options.out / "tokenizer.json").exists():  # what was learned so far is in that tokenizer's ids
        if options.start_from:
            describe_as(options.out, options.start_from)
        else:
            describe(options.out)
    train(job)


def _asked(windows: int, split: str = "held_out") -> list[str]:
    """The simulated benchmark, for training.eval."""
    from .source import HELD_OUT_TEXTS

    asked = ["--bench", "sim", "--windows", str(windows), "--split", split]
    return [*asked, "--held-out-tasks", *sorted(HELD_OUT_TEXTS)]


def _ask(*arguments: object) -> None:
    """Folders are those of the newest model, whatever another one left there."""
    _eval("--replace", *arguments)


def _eval(*arguments: object) -> None:
    code = evaluate([str(argument) for argument in arguments])
    if code:
        raise SystemExit(code)


def _evaluate(options: argparse.Namespace) -> None:
    check_files(options.model)  # what is wrong with it is said before the untrained model is asked
    asked, thinking = _asked(options.windows, options.split), ["--think-tokens", str(THINK_TOKENS)]
    quick = ["--no-blind", "--permutations", "1"]
    if options.split == "validation":
        for folder, more in (("eval-validation", []), ("eval-validation-thinking", thinking)):
            report = WORK / folder / checkpoint_name(options.model)
            _ask("--model", options.model, "--out", report, *quick, *asked, *more)
        return
    base, tuned = WORK / "eval-untrained", WORK / "eval"
    trained = tuned if options.stage == "sft" else WORK / f"eval-{options.stage}"
    _untrained(WORK / "untrained")
    for model, stage, report, more in (
        (WORK / "untrained", "base", base, quick),
        (options.model, options.stage, trained, []),
        (options.model, options.stage, _thinking(trained), thinking),
    ):
        _ask("--model", model, "--stage", stage, "--out", report, *asked, *more)
    # After the second stage the table has rows of what it began with, and of ``compare``, where those exist.
    made = (base, tuned, _thinking(tuned), trained, _thinking(trained))
    reports = [report / "letter.json" for report in dict.fromkeys(made)]
    if options.stage == "rl":
        reports += [WORK / "rl" / "eval" / stage / "strict.json" for stage in ("sft", "rl")]
    _eval("export", *filter(Path.exists, reports), "--out", options.model / "eval.json")


def _thinking(report: Path) -> Path:
    """Folder of the same evaluation, with reasoning before the answer."""
    return report.with_name(f"{report.name}-thinking")


def _compare(options: argparse.Namespace) -> None:
    sampled = ["--protocol", "strict", "--no-blind", "--permutations", "1"]
    none = ["--bench", str(WORK / "rl" / "data" / "none")]
    benchmarks = {"eval": _asked(options.windows), "none": none}
    for model in (options.before, options.after):
        check_files(model)  # what is wrong with one is said before the other is asked
    for folder, asked in benchmarks.items():
        for stage, model in (("sft", options.before), ("rl", options.after)):
            _ask("--model", model, "--stage", stage, "--out", WORK / "rl" / folder / stage, *sampled, *asked)
    for folder in benchmarks:
        before, after = (WORK / "rl" / folder / stage for stage in ("sft", "rl"))
        print(f"\n{folder}")
        _eval("compare", before, after, "--protocol", "strict")


def _diagnose(options: argparse.Namespace) -> None:
    from .diagnose import diagnose

    try:
        print(diagnose(WORK, options.stage, options.moments, options.answers))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def _clip(options: argparse.Namespace) -> None:
    from training.data.sim.clip import ClipChoice, make_clip
    from training.data.sim.scenes import BY_NAME

    opening, _ = BY_NAME["drawer"].skills
    try:
        make_clip(ClipChoice(options.seed), options.out, (), opening.act)  # nano is poor at lettered options
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"wrote {options.out} and {options.out.with_suffix('.json')}")


def _init(options: argparse.Namespace) -> None:
    _untrained(options.out)
    print(f"wrote {options.out}")


def _untrained(directory: Path) -> None:
    from .architecture import create, describe, save_weights

    describe(directory)
    save_weights(create(directory), directory)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.nano",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    cores = os.cpu_count() or 1

    generate = stages.add_parser("generate", help="simulate episodes and clips")
    generate.add_argument("--train", type=int, default=3200, help="seeds of episodes of the robot arm")
    generate.add_argument("--galleries", type=int, default=1770, help="the same, of many looks each")
    generate.add_argument("--held-out", type=int, default=320, help="the same, of the held-out split")
    generate.add_argument("--clips", type=int, default=6000, help="clips of table-top physics")
    generate.add_argument("--held-out-clips", type=int, default=600, help="the same, of the held-out split")
    generate.add_argument("--validation", type=int, default=0, help="episodes to choose checkpoints by")
    generate.add_argument("--validation-clips", type=int, default=0, help="clips to choose checkpoints by")
    generate.add_argument("--processes", type=positive, default=cores, help="worker processes")
    generate.set_defaults(run=_generate)

    train = stages.add_parser("train", help="train tokenizer and model")
    train.add_argument("--out", type=Path, default=WORK / "model", help="directory of the finished model")
    train.add_argument("--vision-steps", type=int, default=0, help="steps of the first stage (0: default)")
    train.add_argument("--answer-steps", type=int, default=0, help="steps of the second stage (0: default)")
    train.add_argument("--sharpen-steps", type=int, default=0, help="steps of the third stage (0: default)")
    train.add_argument("--finish-steps", type=int, default=0, help="steps of the fourth stage (0: default)")
    train.add_argument("--option-steps", type=int, default=0, help="steps of the fifth stage (0: default)")
    train.add_argument("--stages", nargs="+", metavar="NAME", help="run these stages only")
    train.add_argument("--start-from", type=Path, help="checkpoint to begin with, instead of random weights")
    train.add_argument("--processes", type=positive, default=cores, help="one thread each")
    train.set_defaults(run=_train)

    evaluate = stages.add_parser("evaluate", help="ask about the held-out split; two tasks apart")
    evaluate.add_argument("--model", type=Path, default=WORK / "model", help="checkpoint directory")
    evaluate.add_argument("--windows", type=int, default=400, help="of each source")
    evaluate.add_argument(
        "--split",
        choices=("held_out", "validation"),
        default="held_out",
        help="validation: to choose between checkpoints; no table is written into the model's directory",
    )
    evaluate.add_argument("--stage", choices=("sft", "rl"), default="sft", help="that the model comes from")
    evaluate.set_defaults(run=_evaluate)

    compare = stages.add_parser(
        "compare", help="two checkpoints, by sampled answers; none of the options too"
    )
    compare.add_argument("--before", type=Path, default=WORK / "model", help="checkpoint directory")
    compare.add_argument("--after", type=Path, default=WORK / "rl" / "run" / "model", help="the other one")
    compare.add_argument("--windows", type=int, default=300, help="of each source")
    compare.set_defaults(run=_compare)

    diagnose = stages.add_parser("diagnose", help="what the tower sees and what is answered, by object")
    diagnose.add_argument("--stage", choices=("answers", "finish"), default="finish", help="of the tower")
    diagnose.add_argument("--moments", type=int, default=640, help="held-out moments shown to the tower")
    diagnose.add_argument("--answers", type=Path, default=WORK / "eval", help="folder of an evaluation")
    diagnose.set_defaults(run=_diagnose)

    clip = stages.add_parser("clip", help="render the demo clip")
    clip.add_argument("--seed", type=int, default=CLIP_SEED, help="a held-out seed (1000000 or more)")
    clip.add_argument("--out", type=Path, default=CLIP, help="the mp4; a .json is written beside it")
    clip.set_defaults(run=_clip)

    init = stages.add_parser("init", help="write an untrained model")
    init.add_argument("--out", type=Path, default=Path("build/nano-untrained"), help="its directory")
    init.set_defaults(run=_init)
    return parser


def main() -> int:
    """Run one stage; 0 when it is done."""
    options = _parser().parse_args()

    from cosmos_reason_node.errors import CosmosReasonError
    from training.sft.loop import Interrupted, TrainingError
    from training.sft.store import StoreError

    try:
        options.run(options)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 130
    except (CosmosReasonError, TrainingError, StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
