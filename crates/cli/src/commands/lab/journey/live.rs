//! A guest that goes to the other host and back while it runs: both hosts are up, and share its disk.

use std::time::Instant;

use evenkeel_lab::{Error, Exit, Guest, Host, Job, Options, Run};

use super::told::Told;
use super::{ACCEPTED, BLOCK, COMMAND_LINE, Journey, Leg, One};
use crate::commands::handing::migrate::Figures;
use crate::commands::relay;

/// Passes of each worker.
pub const PASSES: u32 = 80;
/// It moves after so many passes of its first worker on a host.
const TIMES: u32 = 2;
/// The other host, and the disk of both.
const LINK: &str = "device:/dev/evenkeel-link";
const DISK: &str = "/dev/vda";
/// How long the guest may stand, in milliseconds of the emulated host: the link carries some MiB a second.
const DOWNTIME: u32 = 4000;
/// Seconds of the emulated host for which a silent peer is waited: it restores.
const PATIENCE: u32 = 120;
/// How much faster than here time may go by on an emulated host.
const FASTER: u64 = 4;

impl Journey {
    /// Both moves, and what the guest wrote on its way.
    pub(super) fn live(
        &self,
        (files, contract): (&Guest, &str),
        (from, to): (&Host, &Host),
        guest: &Host,
        vcpus: u32,
        options: &Options,
    ) -> (One, String) {
        let route = [from, to, from].map(|host| host.name.clone()).to_vec();
        let mut one = One { guest: guest.name.clone(), vcpus, route, ..One::default() };
        match self.moves(files, contract, (from, to), vcpus, options) {
            Ok((legs, moves, console)) => {
                one.told = Told::of(&console);
                one.wrong = one.told.wrong(vcpus, PASSES);
                (one.legs, one.moves) = (legs, moves);
                (one, console)
            }
            Err(why) => {
                one.wrong.push(why.clone());
                (one, why)
            }
        }
    }

    fn moves(
        &self,
        files: &Guest,
        contract: &str,
        (from, to): (&Host, &Host),
        vcpus: u32,
        options: &Options,
    ) -> Result<(Vec<Leg>, Vec<Figures>, String), String> {
        let limit = (self.timeout * FASTER).to_string();
        let disk = tempfile::NamedTempFile::new().map_err(|e| format!("the shared disk: {e}"))?;
        let bytes = (BLOCK * (vcpus * PASSES) as usize) as u64;
        disk.as_file().set_len(bytes).map_err(|e| format!("the shared disk: {e}"))?;
        let options = Options { shared: Some(disk.path().to_owned()), ..options.clone() };
        let job = |host: &Host, times: usize| {
            let binary = options.binary("evenkeel", host.kernel.arch).map_err(|e| e.to_string())?;
            let mut job = Job::new(binary);
            job.outputs = (1..=times).map(relay::console).collect();
            let mut say = |words: &[&str]| job.args.extend(words.iter().map(ToString::to_string));
            say(&["relay", "--over", LINK, "--text", "JOURNEY pass 0.", "--times", &TIMES.to_string()]);
            let (downtime, patience) = (DOWNTIME.to_string(), PATIENCE.to_string());
            for option in ["--verify", "memory", "--downtime", &downtime, "--patience", &patience] {
                say(&["--moving", option]);
            }
            for option in ["--wait", &limit, "--patience", &patience] {
                say(&["--waiting", option]);
            }
            let running = ["--disk", DISK, "--limit", &limit];
            let accepted = ACCEPTED.iter().flat_map(|part| ["--accept", part]);
            running.into_iter().chain(accepted).for_each(|option| say(&["--running", option]));
            Ok::<Job, String>(job)
        };
        let (mut first, second) = (job(from, 2)?, job(to, 1)?);
        let inputs = [
            ("vmlinuz", &files.image[..]),
            ("initramfs", &files.initramfs),
            ("contract.toml", contract.as_bytes()),
        ];
        first.inputs.extend(inputs.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())));
        let machine = format!(
            "--back -- run --kernel vmlinuz --initramfs initramfs --contract contract.toml --vcpus {vcpus} --memory {} --disk {DISK} --limit {}",
            self.memory, limit
        );
        first.args.extend(machine.split(' ').map(str::to_owned));
        first.args.extend(["--command-line".to_owned(), COMMAND_LINE.to_owned()]);

        let begin = Instant::now();
        let [here, there] = evenkeel_lab::run_pair((from, &first), (to, &second), &options);
        let seconds = begin.elapsed().as_secs_f64();
        let (mut here, mut there) = both(told(from, here), told(to, there))?;
        let (mut console, mut legs) = (String::new(), Vec::new());
        for (host, time) in [(from, 1), (to, 1), (from, 2)] {
            let run = if host.name == from.name { &mut here } else { &mut there };
            let part = run.output.files.remove(&relay::console(time));
            let part = part.ok_or_else(|| format!("{}: its serial port did not come back", host.name))?;
            console += &String::from_utf8_lossy(&part);
            legs.push(Leg {
                host: host.name.clone(),
                release: run.release.clone(),
                seconds,
                said: String::from_utf8_lossy(&run.output.stderr).lines().map(str::to_owned).collect(),
            });
        }
        let moves = moves(&here)?.into_iter().chain(moves(&there)?).collect();
        Ok((legs, moves, console))
    }
}

/// What came back of a host on which everything went well.
fn told(host: &Host, run: Result<Run, Error>) -> Result<Run, String> {
    let run = run.map_err(|e| format!("{}: {e}", host.name))?;
    if run.output.exit == Exit::Code(0) {
        return Ok(run);
    }
    let texts = run.output.files.values().chain([&run.output.stdout, &run.output.stderr]);
    let texts: Vec<String> = texts.map(|text| String::from_utf8_lossy(text).trim().to_owned()).collect();
    Err(format!("{}: {:?}: {}", host.name, run.output.exit, texts.join("\n")))
}

/// Of both hosts; what went wrong on either, and on both.
fn both(one: Result<Run, String>, other: Result<Run, String>) -> Result<(Run, Run), String> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Err(one), Err(other)) => Err(format!("{one}\n{other}")),
        (Err(why), Ok(_)) | (Ok(_), Err(why)) => Err(why),
    }
}

/// How the guest moved from this host.
fn moves(run: &Run) -> Result<Vec<Figures>, String> {
    let told = serde_json::Deserializer::from_slice(&run.output.stdout).into_iter::<serde_json::Value>();
    let sent = told.map(|moved| serde_json::from_value(moved?["sent"].take()));
    sent.collect::<Result<_, _>>().map_err(|e| format!("what the move said: {e}"))
}
