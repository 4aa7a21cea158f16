//! Trained weights back into the user's own graph.
