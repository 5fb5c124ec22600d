//! `evenkeel lab fetch`: Debian's kernels.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use evenkeel_lab::{Cache, Error, Fetched, Here, Kernel, Kernels, Progress, fetch, show_bytes};
use indicatif::{ProgressBar, ProgressStyle};

use super::failed;
use crate::failure::Failure;

/// Shows what a long task says of itself: a bar on a terminal, otherwise a line now and then.
#[derive(Default)]
pub struct Teller {
    bar: Option<(String, ProgressBar)>,
    /// What was last said of a download without a terminal, when, and how much of it was there.
    said: Option<(String, Instant, u64)>,
}

/// How often a download is mentioned where there is no terminal.
const MENTION: Duration = Duration::from_secs(10);

impl Teller {
    /// Says it, on standard error.
    pub fn say(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Line(line) => {
                self.end();
                anstream::eprintln!("{line}");
            }
            Progress::Bytes { what, done, total } if std::io::stderr().is_terminal() => {
                if self.bar.as_ref().is_none_or(|(of, _)| of != what) {
                    self.end();
                    let bar = ProgressBar::new(total).with_message(what.to_owned());
                    let style = "{bar:30} {bytes:>11} of {total_bytes} {bytes_per_sec:>12} {eta:>3}  {msg}";
                    bar.set_style(
                        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
                    );
                    self.bar = Some((what.to_owned(), bar));
                }
                if let Some((_, bar)) = &self.bar {
                    bar.set_position(done);
                }
            }
            Progress::Bytes { what, done, total } => {
                let due = match &self.said {
                    Some((of, when, said)) if of == what => {
                        *said < done && (when.elapsed() >= MENTION || done == total)
                    }
                    _ => true,
                };
                if due {
                    anstream::eprintln!("  {what}: {} of {}", show_bytes(done), show_bytes(total));
                    self.said = Some((what.to_owned(), Instant::now(), done));
                }
            }
        }
    }

    fn end(&mut self) {
        if let Some((what, bar)) = self.bar.take() {
            bar.finish_and_clear();
            anstream::eprintln!(
                "  {what}: {} of {}",
                show_bytes(bar.position()),
                show_bytes(bar.length().unwrap_or(0))
            );
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.end();
    }
}

/// Fetch kernels from Debian's archive into the cache; installs nothing.
///
/// What was downloaded before an interruption is gone on with. A kernel that the archive does not serve any more is
/// reported and does not keep the others away: exit code 3 if it was named, 0 if all were asked for and others are here.
#[derive(clap::Args)]
pub struct Fetch {
    /// Names of kernels (`evenkeel lab list`), or releases that the archive has (`6.12.57+deb12-cloud-amd64`); the
    /// whole list when none is named.
    kernels: Vec<String>,
}

impl Fetch {
    /// Fetches.
    pub fn run(self, cache: &Cache) -> Result<u8, Failure> {
        let mut teller = Teller::default();
        let known = Kernels::load(cache);
        let mut wanted: Vec<Kernel> = Vec::new();
        let mut unlisted: Vec<&String> = Vec::new();
        if self.kernels.is_empty() {
            wanted.extend(evenkeel_lab::kernels().cloned());
        }
        for name in &self.kernels {
            match known.host(name) {
                Ok(host) => wanted.push(host.kernel),
                Err(_) if name.starts_with(|c: char| c.is_ascii_digit()) => unlisted.push(name),
                Err(e) => return Err(Failure { exit: 2, ..failed(e) }),
            }
        }
        if !unlisted.is_empty() {
            for name in unlisted {
                let served = evenkeel_lab::served(name, cache, &mut |p| teller.say(p)).map_err(failed)?;
                let found = served.into_iter().find(|kernel| kernel.release == *name);
                wanted.push(found.ok_or_else(|| not_in_archive(name))?);
            }
        }
        let wanted: Vec<&Kernel> = wanted.iter().collect();
        let fetched = fetch(&wanted, cache, &mut |p| teller.say(p)).map_err(failed)?;
        drop(teller);
        Ok(report(&fetched, self.kernels.is_empty()))
    }
}

fn not_in_archive(name: &str) -> Failure {
    let hint = "`evenkeel lab list` names the lab's kernels; `apt-cache search linux-image` others";
    Failure { exit: 3, ..Failure::bad(format!("the archive serves no kernel {name}"), hint) }
}

/// Says what is missing and why, and counts. Returns the exit code.
fn report(fetched: &Fetched, all: bool) -> u8 {
    let (mut gone, mut broken) = (0, 0);
    for (name, done) in fetched {
        match done {
            Ok(_) => {}
            Err(Error::NotServed { why, hint, .. }) => {
                gone += 1;
                anstream::eprintln!("{name}: not served any more: {why}");
                match evenkeel_hosts::BUNDLED.iter().find(|bundled| bundled.name == name) {
                    Some(bundled) => anstream::eprintln!(
                        "  captured earlier: its capture is bundled as {}, so that every comparison works",
                        bundled.name
                    ),
                    None => anstream::eprintln!("  hint: {hint}"),
                }
            }
            Err(e) => {
                broken += 1;
                Failure { message: format!("{name}: {}", failed_text(e).0), ..failed_of(e) }.print();
            }
        }
    }
    let count = |here: Here| fetched.values().filter(|done| matches!(done, Ok(h) if *h == here)).count();
    let (new, already) = (count(Here::New), count(Here::Already));
    let mut words = vec![format!("{new} fetched"), format!("{already} were here")];
    words.extend((gone > 0).then(|| format!("{gone} not served any more")));
    words.extend((broken > 0).then(|| format!("{broken} failed")));
    anstream::eprintln!("{}", words.join(", "));
    match (broken, gone) {
        (0, 0) => 0,
        (0, _) if all && new + already > 0 => 0,
        _ => 3,
    }
}

fn failed_text(e: &Error) -> (String, String) {
    let text = e.to_string();
    let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
    (message.to_owned(), hint.to_owned())
}

fn failed_of(e: &Error) -> Failure {
    let (message, hint) = failed_text(e);
    Failure { exit: 3, ..Failure::bad(message, hint) }
}
