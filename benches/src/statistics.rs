//! Order statistics of a handful of samples.

use std::time::Duration;

/// Samples of one contestant, sorted.
#[derive(Debug)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Sorts them.
    pub fn new(mut samples: Vec<Duration>) -> Samples {
        samples.sort_unstable();
        Samples(samples)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value that `percent` of the samples do not exceed (nearest rank, so that it is one that was measured).
    ///
    /// With fewer than a hundred samples the 99th is the largest.
    pub fn percentile(&self, percent: u32) -> Duration {
        let rank = (self.0.len() * percent as usize).div_ceil(100);
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// Milliseconds with two decimals.
pub fn milliseconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let samples = Samples::new((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!(samples.percentile(50), Duration::from_millis(50));
        assert_eq!(samples.percentile(99), Duration::from_millis(99));
        assert_eq!(samples.percentile(100), Duration::from_millis(100));
        assert_eq!(Samples::new(vec![]).percentile(50), Duration::ZERO);
    }

    #[test]
    fn the_99th_of_few_samples_is_the_largest() {
        let samples = Samples::new([3, 1, 2].map(Duration::from_millis).to_vec());
        assert_eq!(samples.percentile(99), Duration::from_millis(3));
        assert_eq!(samples.percentile(50), Duration::from_millis(2));
    }
}
