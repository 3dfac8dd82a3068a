//! Task engine: launch, watch, exec, attach, stats, kill, recover.
