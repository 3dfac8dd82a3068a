//! Harness: host census, fixtures, probes.
