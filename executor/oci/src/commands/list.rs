//! state, list, ps.

use cofferdam_runtime::State;

use super::Call;
use crate::failed::Failed;

/// Columns are at least this wide, and this far apart, as runc prints them.
const COLUMN_MIN: usize = 12;
const COLUMN_GAP: usize = 3;

/// What `ps` is asked for when nobody says otherwise.
const PS_OPTIONS: &str = "-ef";

pub(crate) fn state(call: &Call<'_>) -> Result<i32, Failed> {
    let state = call.global.runtime()?.state(&call.said.id()?)?;
    println!("{}", serde_json::to_string_pretty(&state)?);
    Ok(0)
}

pub(crate) fn list(call: &Call<'_>) -> Result<i32, Failed> {
    let json = json(call)?;
    if let Some(root) = call.global.root.as_ref().filter(|root| !root.exists()) {
        // Nothing was ever created there: more likely a mistake than an answer, and no reason to make it.
        return Err(Failed::new(format!("open {}: no such file or directory", root.display())));
    }
    let states = call.global.runtime()?.list()?;
    if call.said.has("quiet") {
        states.iter().for_each(|state| println!("{}", state.id));
    } else if json {
        println!("{}", serde_json::to_string(&states)?);
    } else {
        print!("{}", table(&states));
    }
    Ok(0)
}

/// The processes of a container: their pids, or their lines of the host's ps(1).
pub(crate) fn ps(call: &Call<'_>) -> Result<i32, Failed> {
    let json = json(call)?;
    let pids = call.global.runtime()?.pids(&call.said.id()?)?;
    if json {
        println!("{}", serde_json::to_string(&pids)?);
        return Ok(0);
    }
    let options = call.said.words.get(1..).filter(|options| !options.is_empty());
    let mut ps = std::process::Command::new("ps");
    match options {
        Some(options) => ps.args(options),
        None => ps.arg(PS_OPTIONS),
    };
    let output = ps.output().map_err(|error| Failed::new(format!("ps: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failed::new(format!("ps: {}: {}", output.status, said.trim())));
    }
    print!("{}", lines_of(&String::from_utf8_lossy(&output.stdout), &pids)?);
    Ok(0)
}

fn json(call: &Call<'_>) -> Result<bool, Failed> {
    match call.said.text("format").as_deref() {
        None | Some("table") => Ok(false),
        Some("json") => Ok(true),
        Some(_) => Err(Failed::new("invalid format option")),
    }
}

/// The header and the lines whose PID column names one of `pids`.
fn lines_of(output: &str, pids: &[i32]) -> Result<String, Failed> {
    let header = output.lines().next().unwrap_or_default();
    let column = header.split_whitespace().position(|title| title == "PID");
    let column = column.ok_or_else(|| Failed::new("couldn't find PID field in ps output"))?;
    let wanted = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    };
    let lines = std::iter::once(header).chain(output.lines().skip(1).filter(wanted));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

fn table(states: &[State]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let row = |state: &State| {
        let (pid, status) = (state.pid.to_string(), state.status.to_string());
        let bundle = state.bundle.display().to_string();
        [state.id.clone(), pid, status, bundle, state.created.clone(), state.owner.clone()]
    };
    let rows: Vec<_> = std::iter::once(header).chain(states.iter().map(row)).collect();
    let width = |column: usize| {
        let longest = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        COLUMN_MIN.max(longest + COLUMN_GAP)
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |row: &[String; 6]| {
        let padded = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.chain([row[5].clone(), "\n".to_owned()]).collect::<String>()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_the_header_in_runc_s_columns() {
        assert_eq!(table(&[]), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    }

    #[test]
    fn lines_of_ps_are_found_by_their_pid_column() {
        let output = "UID PID PPID CMD\nroot 7 1 sh 8\nroot 8 7 sleep\n";
        assert_eq!(lines_of(output, &[8]).unwrap(), "UID PID PPID CMD\nroot 8 7 sleep\n");
        assert_eq!(lines_of("CMD\nsh\n", &[8]).unwrap_err().words, "couldn't find PID field in ps output");
    }
}
