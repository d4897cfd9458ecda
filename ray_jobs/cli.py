"""The ``fetal`` command; each subcommand's module is imported only when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

COMMANDS = {
    "demo": "the whole way on synthetic images, in a few minutes",
    "run": "audit, prepare, train and evaluate your own images in one go",
    "audit": "check images and labels; compare two label tables",
    "prepare": "split by patient and write uint8 shards",
    "train": "train on a prepared cohort, or resume by name",
    "tune": "search settings with Ray Tune; `fetal tune best` takes the best",
    "evaluate": "calibrate, measure on the test part, write the report",
    "crossval": "repeated cross-validation by patient, for small collections",
    "predict": "name the plane of image files",
    "export": "convert a bundle's model for fast answers on processors",
    "register": "keep a bundle as the next version of a model",
    "promote": "let an alias name a version",
    "rollback": "let an alias name its version before",
    "serve": "answer over HTTP, with a web page",
    "doctor": "check this machine or a cluster before a run",
    "link": "an address for a browser of a report in S3",
    "key": "API keys of the endpoint: create, revoke, list",
    "submit": "run a stage as a job on a Ray cluster",
    "jobs": "jobs of a cluster: list, status, logs, follow, stop",
    "phantom": "write a synthetic ultrasound cohort",
}


def main() -> int:
    """Entry point of the console script."""
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        from ray_jobs.command import cut_off

        return cut_off()


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] in ("--version", "version"):
        print(f"fetal-planes {version('fetal-planes')}")
        return 0
    return _dispatch(argv[0], argv[1:])


def _dispatch(name: str, argv: Sequence[str]) -> int:
    if name not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean `fetal {close[0]}`?" if close else ""
        print(f"error: no command {name!r}.{hint} See `fetal --help`.", file=sys.stderr)
        return 2
    from ray_jobs.command import stage

    return stage(name, argv)


def _help() -> str:
    lines = [f"  {name:<10} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fetal COMMAND ...",
            "",
            "Classifies anatomical planes in fetal ultrasound images. Research use only.",
            "",
            *lines,
            "",
            "`fetal COMMAND --help` lists a command's arguments.",
            "`fetal submit COMMAND ...` runs it on a cluster.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
