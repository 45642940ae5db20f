"""What the package needs of the private modules of Keras, KerasHub and Tokamax, in one place.

Each name with the reason; `tests/test_private.py` fails when one moves.
"""

# Keras takes batches of one's own through it, on every backend and with their number.
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

__all__ = ["DataAdapter"]
