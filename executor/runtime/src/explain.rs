//! A plan with the time of each step.

use std::fmt::Write;

use cofferdam_apply::StepTime;
use cofferdam_plan::Plan;

/// One line a step: when it was done after the beginning, its stage, what it did. Parent and child work at the same time.
pub fn explain(plan: &Plan, times: &[StepTime]) -> String {
    let mut text = String::from("   done at µs  step stage    operation\n");
    for (step, time) in plan.steps.iter().zip(times) {
        let at = if time.at_ns == 0 { "-".to_owned() } else { format!("{:.1}", time.at_ns as f64 / 1000.0) };
        let _ = writeln!(text, "{at:>13} {:>5} {:<8} {}", time.step, step.stage, plan.describe(&step.op));
    }
    text
}
