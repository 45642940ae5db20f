"""What importing the package writes: nothing of TensorFlow's, and everything of anybody else's."""

import os
import re
import subprocess
import sys

import pytest

from keras_encdec import quiet

ABSL = "I0000 00:00:1795651962.971132   26191 port.cc:153] oneDNN custom operations are on.\n"
SCRIPT = """
import logging, sys
import keras  # as most people do first
before = logging.root.level, list(logging.root.handlers)
import keras_encdec
assert (logging.root.level, list(logging.root.handlers)) == before
import absl.logging
assert absl.logging.get_verbosity() == -1, absl.logging.get_verbosity()  # absl's own default
lm = keras_encdec.from_preset("gemma2_mini_docs")
lm.preprocessor.encoder_sequence_length = lm.preprocessor.decoder_sequence_length = 16
lm.fit(["a few words " * 20] * 4, verbose=0)
lm.generate("a few", max_length=4)
import tensorflow as tf
tf.constant(1)
assert logging.root.level == before[0]
"""


def written(capfd, text, error=None):
    try:
        with quiet.imports():
            os.write(2, text.encode())
            if error:
                raise error
    except ValueError:
        pass
    return capfd.readouterr().err


def test_lines_of_absl_are_kept_back(capfd, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    first = "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR"
    assert written(capfd, f"{first}\n{ABSL}Somebody else's.\n{ABSL}") == "Somebody else's.\n"


def test_all_of_it_is_shown_where_the_block_fails(capfd, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    assert written(capfd, ABSL, ValueError()) == ABSL


def test_all_of_it_is_shown_to_who_asks(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    assert written(capfd, ABSL) == ABSL


@pytest.mark.slow
def test_import_load_and_fit_are_quiet_and_change_no_logging():
    env = {k: v for k, v in os.environ.items() if not re.match("TF_|ABSL", k)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "normalizer.cc" not in line]
    assert (done.returncode, done.stdout, said) == (0, "", [])  # that line is SentencePiece's
