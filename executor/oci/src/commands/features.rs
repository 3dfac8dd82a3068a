//! features: what this build supports.

use super::Call;
use crate::failed::Failed;

pub(crate) fn features(_call: &Call<'_>) -> Result<i32, Failed> {
    println!("{}", serde_json::to_string_pretty(&cofferdam_runtime::features::features())?);
    Ok(0)
}
