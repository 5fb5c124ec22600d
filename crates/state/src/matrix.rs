//! Many hosts' reports as one matrix.
