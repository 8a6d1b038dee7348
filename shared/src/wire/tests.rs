//! Round trips and refusals of frames.
