//! The interpreter of plans: parent half, child half, undo and reports.
