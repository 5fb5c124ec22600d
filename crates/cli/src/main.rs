//! The command. Thin: it names things, asks the other crates, prints, and turns an outcome into an exit code.
#![forbid(unsafe_code)]

mod commands;
mod failure;
mod output;

use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use evenkeel_monitor::control::Command as Request;

use crate::failure::Failure;

/// Keeps a KVM guest's environment the same while the host kernel under it is upgraded and rolled back.
#[derive(Parser)]
#[command(name = "evenkeel", version, about, after_help = HOSTS, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const HOSTS: &str = "HOST is a capture file, `here` (this machine), `HOST@KERNEL` (that CPU under a bundled kernel, \
predicted), or a bundled capture: `evenkeel hosts` lists them.\n\nExit codes: 0 holds, 1 does not hold, 2 bad use or bad \
input, 3 unknown or could not be measured.";

/// Options that every command has.
#[derive(Args, Clone, Copy)]
struct Global {
    /// How to print the answer.
    #[arg(long, value_enum, default_value_t = Format::Text, global = true)]
    format: Format,
    /// Every facet by name, and what needs nothing.
    #[arg(long, global = true)]
    all: bool,
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For machines: one JSON document, described in docs/schema.
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// What can this host show a guest? Writes a capture.
    Capture(commands::capture::Capture),
    /// What does a guest see here? Runs one that looks at everything.
    Observe(commands::observe::Observe),
    /// What differs between two hosts, what it means, and which selector brings it back; or between two capsules.
    Diff(commands::diff::Diff),
    /// What is in a capsule? Every section in named fields.
    Inspect(commands::capsule::inspect::Inspect),
    /// Can each host keep this contract?
    Check(commands::check::Check),
    /// Does a guest survive the change from OLD to NEW, and the way back? Four verdicts.
    Survive(commands::survive::Survive),
    /// The richest contract that all of these hosts can keep, and what each of them cost.
    Baseline(commands::baseline::Baseline),
    /// What would a host add to this contract that nobody named?
    Seal(commands::seal::Seal),
    /// Applies a contract to a scratch VM on this host, and says what the kernel really did.
    Apply(commands::apply::Apply),
    /// A code, facet, state item, capability or ledger entry, in plain words and with sources.
    Explain(commands::explain::Explain),
    /// The surface of a kernel that is not installed, on this CPU.
    Predict(commands::predict::Predict),
    /// The bundled captures, and what their names stand for.
    Hosts(commands::hosts::Hosts),
    /// Registers of an arm64 vCPU: save them here, set them there, and see which were kept.
    Registers(commands::registers::Registers),
    #[command(hide = true)]
    Rounds(commands::rounds::Rounds),
    /// Starts a guest that looks at everything, and saves it into a capsule; or saves a machine that runs.
    Snapshot(commands::snapshot::Snapshot),
    /// Restores the guest in a capsule here, and asks it what it sees.
    Restore(commands::restore::Restore),
    /// Runs a Linux guest.
    #[cfg(target_arch = "x86_64")]
    Run(commands::run::Run),
    /// Runs a Linux guest.
    #[cfg(target_arch = "aarch64")]
    Run(commands::run_arm64::Run),
    /// Moves a machine that runs to another host or process.
    Migrate(commands::handing::migrate::Migrate),
    /// Waits for a guest that is moved here, and runs it.
    Receive(commands::handing::receive::Receive),
    /// Hands a machine that runs to a new process on this host, of this or another version.
    Update(commands::handing::update::Update),
    #[command(hide = true)]
    Arrive(commands::handing::arrive::Arrive),
    /// Where is a machine that runs, and what is it confined to?
    Status(commands::control::Ask),
    /// Stops a machine that runs so that it can go on.
    Pause(commands::control::Ask),
    /// Lets a paused machine go on.
    Resume(commands::control::Ask),
    /// Gives the guest of a machine that runs more vCPUs.
    Plug(commands::control::PlugIn),
    /// Ends a machine.
    Stop(commands::control::Ask),
    /// What a machine did, as Prometheus reads it.
    Metrics(commands::control::Ask),
    /// What the threads of a machine may do, and whether this kernel holds them to it.
    Confinement(commands::confinement::Confinement),
    /// Real host kernels on this machine, under emulation: fetch them, run programs on them, capture them.
    Lab(commands::lab::Lab),
    #[command(hide = true)]
    Relay(commands::relay::Relay),
    /// A completion script for a shell, on standard output.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Manual pages, one a command, into a directory.
    Man {
        /// Where to; it must exist.
        directory: std::path::PathBuf,
    },
    /// The JSON Schema of a document.
    Schema {
        /// Which document.
        #[arg(value_enum)]
        document: commands::schema::Document,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let code = if e.use_stderr() { 2 } else { 0 };
            // Nothing can be done about a closed terminal.
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    let global = cli.global;
    let done = match cli.command {
        Command::Capture(c) => c.run(global),
        Command::Observe(c) => c.run(global),
        Command::Diff(c) => c.run(global),
        Command::Inspect(c) => c.run(global),
        Command::Check(c) => c.run(global),
        Command::Survive(c) => c.run(global),
        Command::Baseline(c) => c.run(global),
        Command::Seal(c) => c.run(global),
        Command::Apply(c) => c.run(global),
        Command::Explain(c) => c.run(global),
        Command::Predict(c) => c.run(global),
        Command::Hosts(c) => c.run(global),
        Command::Registers(c) => c.run(global),
        Command::Rounds(c) => c.run(global),
        Command::Snapshot(c) => c.run(global),
        Command::Restore(c) => c.run(global),
        Command::Run(c) => c.run(global),
        Command::Migrate(c) => c.run(global),
        Command::Receive(c) => c.run(global),
        Command::Update(c) => c.run(global),
        Command::Arrive(c) => c.run(global),
        Command::Status(c) => c.run(Request::Status, global),
        Command::Pause(c) => c.run(Request::Pause, global),
        Command::Resume(c) => c.run(Request::Resume, global),
        Command::Plug(c) => c.run(global),
        Command::Stop(c) => c.run(Request::Stop, global),
        Command::Metrics(c) => c.run(Request::Metrics, global),
        Command::Confinement(c) => c.run(global),
        Command::Lab(c) => c.run(global),
        Command::Relay(c) => c.run(global),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "evenkeel", &mut script);
            output::print(&String::from_utf8_lossy(&script)).map(|()| 0)
        }
        Command::Man { directory } => clap_mangen::generate_to(Cli::command(), &directory)
            .map(|()| 0)
            .map_err(|e| Failure::file(&directory, &e)),
        Command::Schema { document } => output::json(&document.schema()).map(|()| 0),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.exit)
        }
    }
}
