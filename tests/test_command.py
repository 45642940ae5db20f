"""The command reads its options before it imports what takes seconds."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, keras_encdec_cli
try:
    status = keras_encdec_cli.main({arguments})
except SystemExit as end:
    status = end.code
print("imported", "keras" in sys.modules, "status", status)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--help"], 0, "demo"),
        (["report", "--help"], 0, "correlation"),
        (["--version"], 0, "keras-encdec 0"),
        (["demoo"], 2, "invalid choice: 'demoo'"),
        (["demo", "--stepz", "3"], 2, "unrecognized arguments: --stepz 3"),
        (["report"], 2, "required: report"),
        (["eval", "gemma2_tiny_tiny"], 2, "required: --tasks"),
        (["merge", "./one", "./two"], 2, "required: --output"),
        ([], 2, "required: command"),
    ],
    ids=str,
)
def test_options_are_read_first(arguments, status, says):
    program = PROGRAM.format(arguments=arguments)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == f"imported False status {status}"
    assert says in ended.stdout + ended.stderr
