//! Isolation as data: steps, stages, host features and plans, with no I/O.
