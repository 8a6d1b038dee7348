//! Round trips and refusals of batches.
