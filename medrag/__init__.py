"""medrag: Chinese medical question answering with retrieval-augmented generation, trainable on old cards."""

__version__ = "0.1.0"
