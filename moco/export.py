"""Writing encoders for other projects (to come); reading them is `moco.encoder_file`."""

from moco.encoder_file import EncoderFile, Loaded, load_trunk, read_encoder

__all__ = ["EncoderFile", "Loaded", "load_trunk", "read_encoder"]
