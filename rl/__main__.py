"""The command line: `attune COMMAND ...` = `python -m rl COMMAND ...`.

    attune ppo RECIPE.toml [--dotted.name value ...]     train (the same command resumes)
    attune sft RECIPE.toml [--dotted.name value ...]     fine-tune on replies (the same command resumes)
    attune sweep RECIPE.toml SWEEP.toml [...]            search over either with Ray Tune
    attune fit KIND [--dotted.name value ...]            fit a classifier or a preference model for the reward
    attune check RECIPE.toml [--dotted.name value ...]   what is missing before a run, and what to do
    attune plan RECIPE.toml [--nodes 1 --devices 8xH100-80GB]   memory, publish and step time, what to change
    attune talk CHECKPOINT                               chat with a trained policy at the terminal
    attune rate RECIPE.toml [--dotted.name value ...]    the service where experts rate a run's replies in a browser
    attune compare SUITE_DIR FIRST SECOND [--items N]    raters say in a browser which of two arms' replies is better
    attune audit RUN [STEP]                              is its chain of ratings sound; which ratings moved a checkpoint
    attune evaluate SUITE [--dotted.name value ...]      arms x corpora x metrics, with intervals: tables and a report
    attune report RUN                                    write RUN/report.html again
    attune demo                                          the whole job on the shipped sample, in minutes

Exit codes: 0 done; 1 failed on the way (a rank died, the disk is full, a reward broke: the same command resumes);
2 wrong settings or input; 3 the loss diverged; 4 the demonstration did not learn;
5 the plan does not fit.
"""

from __future__ import annotations

import enum
import logging
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.settings import SettingsError, help_text, load
from cluster.tracking import METRICS_FILE, read_metrics
from rl.recipe_files import job_of, recipe_path, recipe_type


class Exit(enum.IntEnum):
    """What the exit code says."""

    DONE = 0
    FAILED = 1
    WRONG_INPUT = 2
    DIVERGED = 3
    NOT_LEARNED = 4
    DOES_NOT_FIT = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; one line per error, on standard error."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` ends a run as Ctrl-C does
    commands = {
        "ppo": ppo,
        "sft": sft,
        "sweep": sweep,
        "fit": fit,
        "check": check,
        "plan": plan,
        "talk": talk,
        "rate": rate,
        "compare": compare,
        "audit": audit,
        "evaluate": evaluate,
        "report": report,
        "demo": demo,
    }
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return Exit.DONE if words else Exit.WRONG_INPUT
    if words[0] not in commands:
        return _say(f"unknown command {words[0]!r}; commands are {', '.join(commands)}", Exit.WRONG_INPUT)
    if words[0] in ("talk", "report", "audit") and {"-h", "--help"} & set(words):
        print(__doc__)
        return Exit.DONE
    try:
        return commands[words[0]](words[1:])
    except SettingsError as error:  # told at once: nothing heavy is loaded yet
        return _say(str(error), Exit.WRONG_INPUT)
    except KeyboardInterrupt:
        again = "attune demo (make demo begins anew) resumes" if words[0] == "demo" else "the same command resumes"
        return _leave(_say(f"interrupted; {again} from the last checkpoint, if there is one yet", Exit.FAILED))
    except Exception as error:  # the one place where every error ends: as a line and an exit code
        return _leave(_ending(error))


def _ending(error: Exception) -> Exit:
    from rl.endings import NonFiniteLoss, first_line

    if isinstance(error, NonFiniteLoss):
        return _say(first_line(error), Exit.DIVERGED)
    if isinstance(error, ValueError | FileNotFoundError | IsADirectoryError | PermissionError):
        return _say(first_line(error), Exit.WRONG_INPUT)
    if isinstance(error, RuntimeError | OSError) or _of_ray(error):
        return _say(first_line(error), Exit.FAILED)
    raise error


def _of_ray(error: Exception) -> bool:
    if "ray" not in sys.modules:
        return False
    from cluster.placement import said_by_ray

    return said_by_ray(error)


def _leave(code: Exit) -> Exit:
    """`code`; ends the process with it where its cluster was interrupted too, and Ray would wait for that."""
    if "ray" in sys.modules:
        from cluster.placement import lost

        if lost():
            sys.stdout.flush()
            os._exit(code)
    return code


def _say(line: str, code: Exit) -> Exit:
    print(f"attune: {' '.join(line.split())}", file=sys.stderr)
    return code


def _recipe(words: Sequence[str], command: str, job: str):  # type: ignore[no-untyped-def]
    if any(word in ("-h", "--help") for word in words):
        try:
            print(help_text(recipe_type(job), f"attune {command}{'' if command == 'demo' else ' RECIPE'}"), flush=True)
        except BrokenPipeError:  # `attune ppo --help | head`; what is left to say must not break again at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(Exit.DONE)
    path = recipe_path(words, f"attune {command}")
    found = job_of(path)
    if command not in ("check", "plan") and found != job:
        raise SettingsError(
            f"attune {command} takes recipes of job {job!r}, {path} is of {found!r}: use attune {found}"
        )
    return load(recipe_type(found), path, argv=words[1:])


def ppo(words: Sequence[str]) -> int:
    """Train."""
    recipe = _recipe(words, "ppo", "ppo")
    from rl.ppo import run  # loads torch and more: not before help was given and the settings are sound

    directory = run(recipe)
    print(f"{_reward_change(directory)}\nreport: {directory / 'report.html'}")
    return Exit.DONE


def sft(words: Sequence[str]) -> int:
    """Fine-tune."""
    recipe = _recipe(words, "sft", "sft")
    from rl.sft import run

    directory = run(recipe)
    rows = [row for row in read_metrics(directory / METRICS_FILE) if "valid/loss" in row]
    best = min(rows, key=lambda row: row["valid/loss"])
    print(
        f"best validation perplexity {best['valid/perplexity']:.2f} after {best['step'] + 1} updates, of {rows[-1]['step'] + 1} "
        f"made\nmodel: {directory / 'checkpoints/best/policy'}\nreport: {directory / 'report.html'}"
    )
    return Exit.DONE


def sweep(words: Sequence[str]) -> int:
    """Search."""
    from rl.sweep import sweep as search

    return search(words)


def fit(words: Sequence[str]) -> int:
    """A head or a preference model for the reward."""
    from rewards.fit import fit_command

    return fit_command(words)


def demo(words: Sequence[str]) -> int:
    """The recipe `demo`; not learning is an error."""
    recipe = _recipe(["demo", *words], "demo", "ppo")
    from eval.over_optimisation import training_rewards
    from eval.report_summary import reward_change
    from eval.run_directory import read_run
    from rl.ppo import run

    directory = run(recipe)
    print(f"{_reward_change(directory)}\nreport: {directory / 'report.html'}")
    ended = read_run(directory)
    change = reward_change(training_rewards(ended, ended.metrics))
    if change is not None:
        print(f"rise of the mean reward, 95 % interval: {change.low:+.3f} to {change.high:+.3f}")
    if change is None or change.low <= 0:
        return _say("PPO did not learn: the reward's rise is not clear of 0", Exit.NOT_LEARNED)
    return Exit.DONE


def _reward_change(directory: Path) -> str:
    rewards = [row["reward/mean"] for row in read_metrics(directory / METRICS_FILE)]
    window = min(5, max(len(rewards) // 2, 1))
    first, last = (math.fsum(part) / window for part in (rewards[:window], rewards[-window:]))
    steps = "five steps" if window == 5 else f"{window} steps" if window > 1 else "step"
    return f"mean reward of the first {steps} {first:.4f}, of the last {steps.removesuffix(' steps')} {last:.4f}"


def check(words: Sequence[str]) -> int:
    """Preflight."""
    from rl.check import check as run_checks

    return Exit.DONE if run_checks(_recipe(words, "check", "ppo")) else Exit.WRONG_INPUT


def plan(words: Sequence[str]) -> int:
    """Memory and time on devices that need not be here."""
    from rl.plan import options
    from rl.plan import plan as print_plan

    chosen, rest = options(words[1:])
    recipe = _recipe([*words[:1], *rest], "plan", "ppo")
    return Exit.DONE if print_plan(recipe, chosen) else Exit.DOES_NOT_FIT


def talk(words: Sequence[str]) -> int:
    """Chat."""
    from rl.talk import talk as chat

    if len(words) != 1:
        raise ValueError(f"attune talk needs one checkpoint folder, got {len(words)} words")
    chat(Path(words[0]))
    return Exit.DONE


def rate(words: Sequence[str]) -> int:
    """The rating service of a recipe's run."""
    recipe = _recipe(words, "rate", "ppo")
    from rl.experts import rate as serve

    serve(recipe)
    return Exit.DONE


def compare(words: Sequence[str]) -> int:
    """Human evaluation of two arms, side by side."""
    from rl.compare import compare as side_by_side

    side_by_side(words)
    return Exit.DONE


def audit(words: Sequence[str]) -> int:
    """What the audit chain of a run says."""
    from rl.experts import audit_words, describe_audit

    print(describe_audit(*audit_words(words)))
    return Exit.DONE


def evaluate(words: Sequence[str]) -> int:
    """A suite."""
    from eval.suite_config import load_suite, suite_path

    if not words or words[0].startswith("-"):
        print(suite_help())
        return Exit.DONE if {"-h", "--help"} & set(words) else Exit.WRONG_INPUT
    suite = load_suite(suite_path(words[0]), words[1:])
    from rl.evaluate import run

    directory = run(suite)
    print((directory / "table.md").read_text())
    print(f"every reply: {directory / 'replies.parquet'}\nreport: {directory / 'report.html'}")
    return Exit.DONE


def suite_help() -> str:
    """What `attune evaluate` takes."""
    from eval.metrics import METRICS
    from eval.suite_config import SUITES, ArmConfig, SuiteCorpus, SuiteSettings

    shipped = ", ".join(sorted(path.stem for path in SUITES.glob("*.toml")))
    parts = [f"attune evaluate SUITE [--dotted.name value ...]\n\nSUITE: a .toml file, or one of {shipped}\n"]
    for kind, where in ((SuiteSettings, ""), (ArmConfig, "arms.NAME."), (SuiteCorpus, "corpora.NAME.")):
        parts.append(help_text(kind, f"settings {where}"))
    return "\n".join([*parts, f"metrics: {', '.join(METRICS)}"])


def report(words: Sequence[str]) -> int:
    """The report of a run directory."""
    from eval.report import write_report

    if len(words) != 1 or not (Path(words[0]) / "settings.json").is_file():
        said = repr(" ".join(words)) if words else "nothing"
        raise ValueError(
            f"attune report needs a run directory (runs/NAME, with its settings.json), got {said}; name one"
        )
    print(write_report(Path(words[0])))
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
