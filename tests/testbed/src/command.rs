//! Running `ip`: many lines in one process, since starting it costs more than what it does.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::place::Place;

/// Gives lines to `ip -batch` in a place.
pub(crate) fn ip(place: &Place, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    place.prepare(&mut command)?;
    let mut child = command.spawn().context("cannot start ip")?;
    if let Some(mut input) = child.stdin.take() {
        let text = lines.join("\n") + "\n";
        // Ends early if a line is refused; what ip says of that line is the better message.
        let _ = input.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().context("waitpid")?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        // "Command failed -:3" names the line.
        let number = message.rsplit_once("-:").and_then(|(_, rest)| rest.trim().parse::<usize>().ok());
        let line = number.and_then(|number| lines.get(number.wrapping_sub(1))).map_or("?", String::as_str);
        bail!("ip {line}: {}", message.trim());
    }
    Ok(())
}
