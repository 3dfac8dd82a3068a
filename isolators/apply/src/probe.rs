//! Probing the host.
