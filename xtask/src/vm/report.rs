//! What a machine says of itself on the suites' serial line: its own lines, which begin with `vm: `, and what the test
//! harness prints between them.

use std::time::Duration;

use serde_json::Value;

/// What begins a line of the machine's first process; `tests/suites/src/bin/netpol-vm-init.rs` writes them.
const OWN: &str = "vm: ";
/// What begins a line of a test that the kernel cannot carry.
const SKIP: &str = "skip: ";

/// What begins a line that is compared between kernels: `figure: <what>: <of>: <value>` (`netpol_suites::kernel::figure`).
const FIGURE: &str = "figure: ";

/// What became of one suite.
#[derive(Debug, Default)]
pub(super) struct Suite {
    pub(super) name: String,
    pub(super) passed: usize,
    pub(super) failed: usize,
    /// What the kernel lacks, and since when it is there.
    pub(super) skips: Vec<String>,
    /// What it has probed: rows of JSON as `netpol_suites::cells` writes them, those of one kind added up.
    pub(super) cells: Vec<Value>,
    /// The status of the test binary; `None` if it has not ended.
    pub(super) status: Option<String>,
    /// As the machine measured it.
    pub(super) seconds: String,
}

impl Suite {
    fn add(&mut self, row: Value) {
        let of_one_kind = |there: &&mut Value| ["suite", "family", "proxy"].iter().all(|key| there[key] == row[key]);
        if let Some(there) = self.cells.iter_mut().find(of_one_kind) {
            for key in ["cells", "wrong"] {
                there[key] = (there[key].as_u64().unwrap_or_default() + row[key].as_u64().unwrap_or_default()).into();
            }
        } else {
            self.cells.push(row);
        }
    }
}

/// What became of one machine.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The kernel's own name.
    pub(super) release: String,
    /// From the emulator's start to the first process.
    pub(super) boot: Option<Duration>,
    /// From the emulator's start to its end.
    pub(super) wall: Duration,
    pub(super) suites: Vec<Suite>,
    /// What it was, of what, and the value.
    pub(super) figures: Vec<[String; 3]>,
    /// Why this run is not as it should be, apart from tests.
    pub(super) failures: Vec<String>,
    finished: bool,
}

impl Report {
    /// Takes a line of the serial line; returns whether it is for the user's eyes.
    pub(super) fn take(&mut self, line: &str, since_start: Duration) -> bool {
        if let Some(own) = line.strip_prefix(OWN) {
            let words: Vec<&str> = own.split_whitespace().collect();
            match &words[..] {
                ["up", release] => {
                    self.release = (*release).to_owned();
                    self.boot = Some(since_start);
                }
                ["begins", name] => self.suites.push(Suite { name: (*name).to_owned(), ..Suite::default() }),
                ["ends", name, seconds, status @ ..] => {
                    if let Some(suite) = self.suites.iter_mut().rfind(|suite| suite.name == *name) {
                        suite.status = Some(status.join(" "));
                        suite.seconds = (*seconds).to_owned();
                    }
                }
                ["done"] => self.finished = true,
                _ => self.failures.push(own.to_owned()),
            }
            return true;
        }
        let Some(suite) = self.suites.last_mut() else { return !line.is_empty() };
        if let Some((_, figure)) = line.split_once(FIGURE) {
            let mut words = figure.splitn(3, ": ").map(str::to_owned);
            if let (Some(what), Some(of), Some(value)) = (words.next(), words.next(), words.next()) {
                self.figures.push([what, of, value]);
            }
            return true;
        }
        // A row comes in the middle of the harness's line about the test that writes it.
        if let Some(row) = line.find('{').and_then(|at| serde_json::from_str::<Value>(line.get(at..)?).ok())
            && row["cells"].is_u64()
        {
            suite.add(row);
            return true;
        }
        if let Some((_, skip)) = line.split_once(SKIP) {
            suite.skips.push(skip.to_owned());
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            let count = |what: &str| {
                let part =
                    counts.split([';', '.']).find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok());
                part.unwrap_or_default()
            };
            (suite.passed, suite.failed) = (count("passed"), count("failed"));
        }
        !line.is_empty()
    }

    /// Looks at what the kernel has said: an oops in one test may leave the test itself none the wiser.
    pub(super) fn console(&mut self, text: &str) {
        const BAD: [&str; 5] = ["Kernel panic", "BUG: ", "Oops: ", "WARNING: ", "Call Trace:"];
        let bad = text.lines().filter(|line| BAD.iter().any(|sign| line.contains(sign)));
        self.failures.extend(bad.map(|line| format!("the kernel says: {line}")));
    }

    /// Whether the first process has come up.
    pub(super) fn is_up(&self) -> bool {
        self.boot.is_some()
    }

    /// Whether it ran to its end.
    pub(super) fn is_complete(&self) -> bool {
        self.finished
    }

    /// Whether all is well: every suite that was asked for ran to its end, with at least one test.
    pub(super) fn is_good(&self, asked_for: usize) -> bool {
        let good = |suite: &Suite| suite.status.as_deref() == Some("status 0") && suite.failed == 0 && suite.passed > 0;
        self.finished && self.failures.is_empty() && self.suites.len() == asked_for && self.suites.iter().all(good)
    }

    /// A line for each suite, in the manner of the test harness.
    pub(super) fn lines(&self, kernel: &str) -> Vec<String> {
        let boot = self.boot.map_or_else(|| "never up".to_owned(), |boot| format!("up in {:.0} s", boot.as_secs_f64()));
        let mut lines = vec![format!("{kernel:7} {}: {boot}, {:.0} s in all", self.release, self.wall.as_secs_f64())];
        for Suite { name, passed, failed, skips, cells, status, seconds } in &self.suites {
            let status = match status.as_deref() {
                Some("status 0") => "ok".to_owned(),
                Some(other) => format!("FAILED ({other})"),
                None => "FAILED (did not end)".to_owned(),
            };
            let number = skips.len();
            lines.push(format!(
                "{kernel:7} {name:12} {status}. {passed} passed; {failed} failed; {number} skipped; {seconds}"
            ));
            lines.extend(skips.iter().map(|skip| format!("{kernel:7}   skipped: {skip}")));
            lines.extend(cells.iter().map(|row| format!("{kernel:7} {name:12} {row}")));
        }
        // In the form of a suite: whoever reads these lines by program must not overlook it.
        let machine = |why: &String| format!("{kernel:7} machine      FAILED. 0 passed; 1 failed; 0 skipped; {why}");
        lines.extend(self.failures.iter().map(machine));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.take(line, Duration::from_secs(3));
        }
        report
    }

    const GOOD: [&str; 7] = [
        "vm: up 5.10.0-32-cloud-amd64",
        "vm: begins packets",
        "test corners::a ... ok",
        "skip: tcx, since 6.6 (e420bed02507)",
        "test result: ok. 15 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 3.21s",
        "vm: ends packets 3.4s status 0",
        "vm: done",
    ];

    #[test]
    fn a_machine_that_ran_to_its_end_is_good() {
        let report = report(&GOOD);
        assert!(report.is_good(1) && report.is_up() && report.is_complete());
        let lines = report.lines("5.10");
        assert_eq!(lines[0], "5.10    5.10.0-32-cloud-amd64: up in 3 s, 0 s in all");
        assert_eq!(lines[1], "5.10    packets      ok. 15 passed; 0 failed; 1 skipped; 3.4s");
        assert_eq!(lines[2], "5.10      skipped: tcx, since 6.6 (e420bed02507)");
    }

    #[test]
    fn figures_and_rows_are_taken_out_of_what_suites_print() {
        let row = |cells, wrong| {
            format!(r#"{{"cells":{cells},"family":"dual","proxy":"-","suite":"three ways","wrong":{wrong}}}"#)
        };
        let [one, another] = [row(36_914, 0), row(6, 1)].map(|row| format!("test generated::agree ... {row}"));
        let report = report(&["vm: up 1", "vm: begins packets", "figure: verified: pod_egress: 83783", &one, &another]);
        assert_eq!(report.figures, [["verified", "pod_egress", "83783"].map(str::to_owned)]);
        assert_eq!(report.lines("5.10")[2..], [format!("5.10    packets      {}", row(36_920, 1))]);
    }

    #[test]
    fn nothing_is_good_that_did_not_happen() {
        assert!(!report(&GOOD[..6]).is_good(1), "not done");
        assert!(!report(&GOOD).is_good(2), "a suite is missing");
        assert!(!report(&["vm: up 1", "vm: done"]).is_good(1));
        let no_tests = ["vm: up 1", "vm: begins a", "vm: ends a 1s status 0", "vm: done"];
        assert!(!report(&no_tests).is_good(1), "no test ran");
        let failed = ["vm: up 1", "vm: begins a", "vm: ends a 1s status 101", "vm: done"];
        assert!(!report(&failed).is_good(1));
        assert!(!report(&["vm: cannot mount /sys/fs/bpf: EPERM"]).failures.is_empty());
    }

    #[test]
    fn what_the_kernel_complains_of_is_a_failure() {
        let mut report = report(&GOOD);
        report.console("[    1.0] Run /init as init process\n[    2.0] WARNING: CPU: 0 PID: 1 at net/core/dev.c:1\n");
        assert!(!report.is_good(1));
    }
}
