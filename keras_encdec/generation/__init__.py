"""From a prompt to text: the decode loop, and what it is asked for."""

from keras_encdec.generation.beams import BeamSearch

__all__ = ["BeamSearch"]
