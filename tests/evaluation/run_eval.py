"""`keras-encdec eval` in a process that may be killed: `run_eval.py DIES_AFTER ARGUMENTS...`.

After so many additions to the file of answers it kills itself, as by `kill -9`; 0 for never.
"""

import os
import signal
import sys

import keras_encdec_cli


def main():
    dies_after, *arguments = sys.argv[1:]
    from keras_encdec.evaluation.harness_answers import Answers

    add, left = Answers.add, [int(dies_after)]

    def counted(self, answers):
        add(self, answers)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    Answers.add = counted
    return keras_encdec_cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
