//! Content store, layers, snapshots and image layouts.
