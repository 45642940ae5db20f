"""Docstrings: read without importing, split by file, never twice."""

from keras_encdec.data import docstrings


def test_the_split_is_by_file_and_free_of_duplicates():
    training, held_out = docstrings.load(["numpy"])
    assert len(training) > 1000
    assert len(held_out) > 10
    assert not {d.file for d in training} & {d.file for d in held_out}
    texts = [d.text for d in training + held_out]
    assert len(texts) == len(set(texts))
    assert docstrings.load(["numpy"]) == (training, held_out)


def test_a_package_that_is_not_there_is_skipped():
    assert docstrings.load(["no_such_package_at_all"]) == ([], [])


def test_summary_and_body():
    body = "b " * 200
    doc = docstrings.Docstring("f", f"Returns the mean of an array.\n\n{body}")
    assert doc.summary_and_body == ("Returns the mean of an array.", body.strip())
    for text in ("No body here at all, only this.", f"no full stop at the end\n\n{body}"):
        assert docstrings.Docstring("f", text).summary_and_body is None
