//! A guest that counts, writes what it counts to its memory, and says itself whether anything there is not as it left it.
// Each program of tests uses a part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_evenkeel");
const ENTRY: u64 = 0x10_0000;

/// Writes `a` to `p` to the serial port, over and over; before each next one it writes how many there were into the next of 1024
/// pages, and says `!` if what it wrote there 1024 times ago is not there any more.
const COUNTS: &[u8] = &[
    0x48, 0xc7, 0xc3, 0x00, 0x00, 0x20, 0x00, // mov rbx, 0x200000
    0x31, 0xc9, // xor ecx, ecx
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x89, 0xc8, // again: mov eax, ecx
    0x83, 0xe0, 0x0f, // and eax, 15
    0x04, b'a', // add al, 'a'
    0xee, // out dx, al
    0xff, 0xc1, // inc ecx
    0x89, 0xc8, // mov eax, ecx
    0x25, 0xff, 0x03, 0x00, 0x00, // and eax, 0x3ff
    0xc1, 0xe0, 0x0c, // shl eax, 12
    0x89, 0xc7, // mov edi, eax
    0x8b, 0x34, 0x3b, // mov esi, [rbx + rdi]
    0x8d, 0x81, 0x00, 0xfc, 0xff, 0xff, // lea eax, [rcx - 0x400]
    0x81, 0xf9, 0x00, 0x04, 0x00, 0x00, // cmp ecx, 0x400
    0x77, 0x02, // ja over
    0x31, 0xc0, // xor eax, eax
    0x39, 0xc6, // over: cmp esi, eax
    0x74, 0x03, // je right
    0xb0, b'!', // mov al, '!'
    0xee, // out dx, al
    0x89, 0x0c, 0x3b, // right: mov [rbx + rdi], ecx
    0xeb, 0xc6, // jmp again
];

pub fn kernel(into: &Path) -> PathBuf {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2_u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for long in [ENTRY, 64, 0] {
        file.extend(long.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1_u32, 7] {
        file.extend(word.to_le_bytes());
    }
    let length = COUNTS.len() as u64;
    for long in [0x1000, ENTRY, ENTRY, length, length, 0x1000] {
        file.extend(long.to_le_bytes());
    }
    file.resize(0x1000, 0);
    file.extend(COUNTS);
    let path = into.join("kernel");
    std::fs::write(&path, file).unwrap();
    path
}

/// A process whose standard output goes into a file.
pub struct Process {
    pub child: Child,
    out: PathBuf,
}

/// Where all of it happens: a folder of its own.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn start(&self, name: &str, arguments: &[&str]) -> Process {
        self.start_program(name, PROGRAM, arguments)
    }

    pub fn start_program(&self, name: &str, program: &str, arguments: &[&str]) -> Process {
        let out = self.path(&format!("{name}.out"));
        let err = std::fs::File::create(self.path(&format!("{name}.err"))).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&out).unwrap())
            .stderr(err)
            .spawn()
            .unwrap();
        Process { child, out }
    }

    pub fn ask(&self, arguments: &[&str]) -> Output {
        self.ask_program(PROGRAM, arguments)
    }

    pub fn ask_program(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(arguments)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Anybody may use it, and has the program there.
    pub fn for_all(&self) {
        std::fs::set_permissions(self.0.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        std::fs::copy(PROGRAM, self.path("evenkeel")).unwrap();
    }

    pub fn errors(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.err"))).unwrap_or_default()
    }

    /// A guest that runs, with this control socket.
    pub fn guest(&self, socket: &str) -> Process {
        self.guest_with(socket, "--memory 32")
    }

    pub fn guest_with(&self, socket: &str, more: &str) -> Process {
        kernel(self.0.path());
        std::fs::write(self.path("disk"), vec![0; 1 << 20]).unwrap();
        let run = "run --limit 300 --kernel kernel --disk disk --control";
        let arguments: Vec<&str> = run.split(' ').chain([socket]).chain(more.split(' ')).collect();
        let process = self.start("first", &arguments);
        self.soon("it runs", || self.phase(socket).as_deref() == Some("running"));
        process
    }

    pub fn phase(&self, socket: &str) -> Option<String> {
        let told = self.ask(&["status", socket, "--format", "json"]);
        let told: Value = serde_json::from_slice(&told.stdout).ok()?;
        Some(told["reply"]["status"]["phase"].as_str()?.to_owned())
    }

    pub fn soon(&self, what: &str, mut is: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !is() {
            if begin.elapsed() > Duration::from_secs(90) {
                for file in std::fs::read_dir(self.0.path()).unwrap().flatten().map(|entry| entry.path()) {
                    if file.extension().is_some_and(|end| end == "err") {
                        eprintln!("{}: {}", file.display(), std::fs::read_to_string(&file).unwrap());
                    }
                }
                panic!("not so: {what}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Process {
    pub fn said(&self) -> Vec<u8> {
        std::fs::read(&self.out).unwrap()
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This many bytes at least were said by a guest that went on from wherever it was, and nothing was missing.
pub fn goes_on(said: &[u8], least: usize) {
    assert!(said.len() >= least, "{} bytes", said.len());
    for (index, pair) in said.windows(2).enumerate() {
        let around = String::from_utf8_lossy(&said[index.saturating_sub(20)..(index + 20).min(said.len())]);
        assert_eq!(pair[1], if pair[0] == b'p' { b'a' } else { pair[0] + 1 }, "at {index}: {around}");
    }
    assert!((b'a'..=b'p').contains(&said[0]));
}

/// What the guest said in one process after the other is what it would have said in one.
pub fn whole(parts: &[&Process]) {
    let said: Vec<u8> = parts.iter().flat_map(|part| part.said()).collect();
    for (index, byte) in said.iter().enumerate() {
        let around = String::from_utf8_lossy(&said[index.saturating_sub(20)..(index + 20).min(said.len())]);
        assert_eq!(*byte, b'a' + (index % 16) as u8, "at {index}: {around}");
    }
}
