//! `cargo xtask peers`: QEMU from Debian's backports, in a root of its own, and how it saves as much memory as our benchmark
//! does, on this machine. The machine's packages are not touched.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const SUITE: &str = "bookworm";
const PACKAGE: &str = "qemu-system-x86";

/// Fetch QEMU 10.0 and time `migrate file:` with it.
#[derive(clap::Args)]
pub struct Peers {
    /// Where the packages are unpacked; kept for the next time.
    #[arg(long, default_value = "target/peers")]
    root: PathBuf,
    /// MiB of guest memory.
    #[arg(long, default_value_t = 1024)]
    mib: usize,
    /// How often each is timed.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// The accelerator: kvm or tcg.
    #[arg(long, default_value = "kvm")]
    accel: String,
}

fn words(what: &str) -> impl FnOnce(std::io::Error) -> String + '_ {
    move |e| format!("{what}: {e}")
}

fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).env("LC_ALL", "C").output();
    let done = done.map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&done.stderr).into_owned();
    Err(format!("{}: {}\n{why}", command.get_program().to_string_lossy(), done.status))
}

impl Peers {
    pub fn run(self) -> Result {
        let root = std::path::absolute(&self.root).map_err(words("root"))?;
        let tree = root.join("tree");
        if !tree.join("usr/bin/qemu-system-x86_64").exists() {
            fetch(&root, &tree)?;
        }
        let version = output(qemu(&tree).arg("--version"))?;
        println!("{}", version.lines().next().unwrap_or_default());
        println!("{} MiB, filled with noise, -M microvm -accel {}", self.mib, self.accel);
        let noise = noise(self.mib)?;
        let mut floors = Vec::new();
        let mut saved: [Vec<Saved>; 2] = Default::default();
        let mut status = String::new();
        // By turns, so that whatever else runs here slows all.
        for _ in 0..self.runs.max(1) {
            floors.push(floor(self.mib)?);
            for (all, mapped) in saved.iter_mut().zip([false, true]) {
                let (one, was) = self.save(&tree, &noise, mapped)?;
                status = was;
                all.push(one);
            }
        }
        println!("status of the guest before: {status}");
        println!("{:<52} {:>9} {:>9} {:>9}", "", "least", "median", "most");
        show("write(2) of as much into a memfd, ms", floors.clone());
        for (all, name) in saved.iter().zip(["migrate file:", "migrate file:, mapped-ram, multifd 2"]) {
            show(&format!("{name}: total, ms"), all.iter().map(|one| one.total).collect());
            show(
                &format!("{name}: downtime, as QEMU tells it, ms"),
                all.iter().map(|one| one.down).collect(),
            );
            let ratios = all.iter().zip(&floors).map(|(one, floor)| floor / one.total);
            show(&format!("{name}: throughput of write(2)'s"), ratios.collect());
        }
        Ok(())
    }

    /// One guest, saved once.
    fn save(&self, tree: &Path, noise: &File, mapped: bool) -> Result<(Saved, String)> {
        use std::os::fd::AsRawFd as _;
        let folder = tempfile::tempdir().map_err(words("a folder"))?;
        let socket = folder.path().join("qmp");
        let file = tempfile::tempdir_in("/dev/shm").map_err(words("/dev/shm"))?;
        let memory = format!("/proc/{}/fd/{}", std::process::id(), noise.as_raw_fd());
        let mut command = qemu(tree);
        command
            .args(["-nodefaults", "-display", "none", "-accel", &self.accel, "-smp", "1"])
            .args(["-m", &format!("{}M", self.mib)])
            .arg("-object")
            .arg(format!("memory-backend-file,id=m,size={}M,mem-path={memory},share=on", self.mib))
            .args(["-machine", "microvm,memory-backend=m"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut qemu = Ended(child.map_err(words("qemu"))?);
        let mut qmp = Qmp::open(&socket)?;
        std::thread::sleep(Duration::from_millis(300));
        let status = qmp.ask("query-status", json!({}))?["status"].as_str().unwrap_or("?").to_owned();
        qmp.ask("migrate-set-parameters", json!({"max-bandwidth": 100_u64 << 30, "multifd-channels": 2}))?;
        let capabilities = json!([
            {"capability": "mapped-ram", "state": mapped}, {"capability": "multifd", "state": mapped}
        ]);
        qmp.ask("migrate-set-capabilities", json!({"capabilities": capabilities}))?;
        let uri = format!("file:{}/saved", file.path().display());
        let begin = Instant::now();
        qmp.ask("migrate", json!({"uri": uri}))?;
        let done = loop {
            let now = qmp.ask("query-migrate", json!({}))?;
            match now["status"].as_str() {
                Some("completed") => break now,
                Some("failed" | "cancelled") => return Err(format!("it did not migrate: {now}")),
                _ if begin.elapsed() > Duration::from_secs(120) => return Err("it does not end".to_owned()),
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        qmp.ask("quit", json!({}))?;
        qemu.0.wait().map_err(words("qemu"))?;
        let number = |name: &str| done[name].as_f64().unwrap_or(f64::NAN);
        Ok((Saved { total: number("total-time"), down: number("downtime") }, status))
    }
}

/// What QEMU says that it took, in milliseconds.
struct Saved {
    total: f64,
    down: f64,
}

/// A process that does not outlive this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn open(socket: &Path) -> Result<Qmp> {
        let begin = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(e) if begin.elapsed() > Duration::from_secs(20) => return Err(format!("QMP: {e}")),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let mut qmp = Qmp(BufReader::new(stream));
        qmp.line()?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line).map_err(words("QMP"))?;
        serde_json::from_str(&line).map_err(|e| format!("QMP: {e}: {line}"))
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut text = json!({"execute": command, "arguments": arguments}).to_string();
        text.push('\n');
        self.0.get_mut().write_all(text.as_bytes()).map_err(words("QMP"))?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}"));
            }
            if let Some(done) = answer.get_mut("return") {
                return Ok(done.take());
            }
        }
    }
}

/// QEMU with the loader and the libraries that it came with.
fn qemu(tree: &Path) -> Command {
    let mut command = Command::new(tree.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
    let library = |folder: &str| tree.join(folder).display().to_string();
    let folders = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(library);
    command.arg("--library-path").arg(folders.join(":")).arg(tree.join("usr/bin/qemu-system-x86_64"));
    for data in ["usr/share/qemu", "usr/share/seabios"] {
        command.arg("-L").arg(tree.join(data));
    }
    command
}

fn noise(mib: usize) -> Result<File> {
    let mut file = memfd()?;
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0; 1 << 20];
    for word in bytes.chunks_exact_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        word.copy_from_slice(&x.to_le_bytes());
    }
    // That it repeats is nothing to QEMU: pages are zero to it, or not.
    for _ in 0..mib {
        file.write_all(&bytes).map_err(words("a memfd"))?;
    }
    Ok(file)
}

fn memfd() -> Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    rustix::fs::memfd_create("peers", flags).map(File::from).map_err(|e| e.to_string())
}

fn floor(mib: usize) -> Result<f64> {
    let bytes = vec![7; mib << 20];
    let mut file = memfd()?;
    let begin = Instant::now();
    file.write_all(&bytes).map_err(words("a memfd"))?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

fn show(what: &str, mut all: Vec<f64>) {
    all.sort_by(f64::total_cmp);
    println!("{what:<52} {:>9.2} {:>9.2} {:>9.2}", all[0], all[all.len() / 2], all[all.len() - 1]);
}

/// Downloads the package with all that it needs, by an apt root of our own, which checks signatures as always.
fn fetch(root: &Path, tree: &Path) -> Result {
    let apt = root.join("apt");
    for folder in ["etc/apt", "var/lib/dpkg", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial"] {
        fs::create_dir_all(apt.join(folder)).map_err(words("the apt root"))?;
    }
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI)\t$(RELEASE)", "Created-By: Packages"]);
    let targets = output(&mut targets)?;
    let mirror = targets.lines().find_map(|line| line.split_once('\t').filter(|(_, suite)| *suite == SUITE));
    let (mirror, _) = mirror.ok_or(format!("apt's sources on this machine have no {SUITE}"))?;
    let line =
        |suite: &str| format!("deb [arch=amd64 target=Packages signed-by={KEYRING}] {mirror} {suite} main\n");
    let sources = line(SUITE) + &line(&format!("{SUITE}-backports"));
    let configuration = format!(
        r#"#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir "{0}";
Dir::State::status "{0}/var/lib/dpkg/status";
APT::Architecture "amd64";
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
"#,
        apt.display()
    );
    let write = |name: &str, text: &str| fs::write(apt.join(name), text).map_err(words("the apt root"));
    write("var/lib/dpkg/status", "")?;
    write("etc/apt/sources.list", &sources)?;
    write("peers.conf", &configuration)?;
    let ask = |arguments: &[&str]| {
        output(Command::new("apt-get").arg("-q").arg("-c").arg(apt.join("peers.conf")).args(arguments))
    };
    ask(&["update"])?;
    ask(&["-y", "-t", &format!("{SUITE}-backports"), "--download-only", "install", PACKAGE])?;
    // Unpacked beside its place, so that a tree that is there is whole.
    let new = root.join("tree.new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(words("the old tree"))?;
    }
    fs::create_dir_all(&new).map_err(words("the tree"))?;
    let archives = fs::read_dir(apt.join("var/cache/apt/archives")).map_err(words("packages"))?;
    for deb in archives.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some()) {
        output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&new))?;
    }
    fs::rename(&new, tree).map_err(words("the tree"))
}
