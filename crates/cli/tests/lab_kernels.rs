//! `evenkeel lab` as far as it goes without a network and without an emulator: kernels that a user brings, what is left
//! by a lab that is killed, and what is said when a program is missing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// A cache, a folder of programs to find, and things to add.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { folder: tempfile::tempdir().unwrap() };
        for folder in ["cache", "bin", "static/x86_64", "modules"] {
            fs::create_dir_all(bench.at(folder)).unwrap();
        }
        fs::write(bench.at("bzImage"), bzimage("6.12.1-mine")).unwrap();
        fs::write(bench.at("static/x86_64/evenkeel-lab-init"), "").unwrap();
        fs::write(bench.at("static/x86_64/evenkeel"), "").unwrap();
        bench
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Makes these programs findable, and no others.
    fn programs(&self, programs: &[&str]) {
        for program in programs {
            let real = std::env::split_paths(&std::env::var_os("PATH").unwrap())
                .map(|folder| folder.join(program))
                .find(|file| file.is_file())
                .unwrap_or_else(|| panic!("{program} is not installed"));
            symlink(real, self.at("bin").join(program)).unwrap();
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("EVENKEEL_CACHE", self.at("cache"))
            .env("EVENKEEL_STATIC", self.at("static"))
            .env_remove("EVENKEEL_CACHE_LIMIT")
            .stdin(Stdio::null());
        command
    }

    fn lab(&self, args: &[&str]) -> Output {
        self.command(&[&["lab"], args].concat()).output().unwrap()
    }

    /// With nothing but [`Bench::programs`] to be found.
    fn poor(&self, args: &[&str]) -> Output {
        self.command(&[&["lab"], args].concat()).env("PATH", self.at("bin")).output().unwrap()
    }

    /// A package with an image and many modules.
    fn package(&self) -> PathBuf {
        let root = self.at("package");
        let modules = root.join("lib/modules/6.12.1-mine/kernel");
        fs::create_dir_all(root.join("DEBIAN")).unwrap();
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::create_dir_all(&modules).unwrap();
        let control = "Package: linux-image-6.12.1-mine\nVersion: 1\nArchitecture: amd64\n\
                       Maintainer: me <me@example>\nDescription: x\n";
        fs::write(root.join("DEBIAN/control"), control).unwrap();
        fs::write(root.join("boot/vmlinuz-6.12.1-mine"), bzimage("6.12.1-mine")).unwrap();
        for i in 0..MODULES {
            fs::write(modules.join(format!("m{i}.ko")), module()).unwrap();
        }
        let file = self.at("mine.deb");
        let mut build = Command::new("dpkg-deb");
        build.args(["-Znone", "--root-owner-group", "-b"]).arg(&root).arg(&file);
        assert!(build.output().unwrap().status.success());
        file
    }
}

const MODULES: usize = 1500;

/// A bzImage as far as its header goes (Documentation/arch/x86/boot.rst).
fn bzimage(release: &str) -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x300_u16.to_le_bytes());
    image[0x236] = 1;
    image[0x500..0x500 + release.len()].copy_from_slice(release.as_bytes());
    image
}

/// The smallest ELF file with a .modinfo section.
fn module() -> Vec<u8> {
    let (names, info) = (b"\0.modinfo\0", b"depends=\0vermagic=6.12.1-mine SMP \0");
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let (names_at, info_at) = (elf.len() as u64, (elf.len() + names.len()) as u64);
    elf.extend_from_slice(names);
    elf.extend_from_slice(info);
    let table = elf.len() as u64;
    elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    elf[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
    elf[0x3c..0x3e].copy_from_slice(&2_u16.to_le_bytes());
    for (name, at, length) in [(0_u32, names_at, names.len()), (1, info_at, info.len())] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&at.to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
        elf.extend_from_slice(&header);
    }
    elf
}

fn words(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout)
}

#[track_caller]
fn says(out: &Output, exit: i32, parts: &[&str]) {
    let text = words(out);
    assert_eq!(out.status.code(), Some(exit), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn a_kernel_is_added_listed_shown_and_removed() {
    let bench = Bench::new();
    fs::write(bench.at("modules/kvm-amd.ko"), module()).unwrap();
    says(
        &bench.lab(&["add", "mine", "--image", "bzImage", "--modules", "modules"]),
        0,
        &["6.12.1-mine", "x86_64"],
    );
    says(&bench.lab(&["list"]), 0, &["mine ", "6.12.1-mine", "bzImage", "fetched"]);
    says(&bench.lab(&["cache"]), 0, &["mine", "yours", "of 8.0 GiB"]);
    let json: serde_json::Value =
        serde_json::from_slice(&bench.lab(&["cache", "--format", "json"]).stdout).unwrap();
    assert_eq!(json["kernels"][0]["name"], "mine");
    assert_eq!(json["kernels"][0]["added"], true);
    says(&bench.lab(&["add", "mine", "--image", "bzImage"]), 2, &["--replace"]);
    says(&bench.lab(&["add", "debian-6.12", "--image", "bzImage"]), 2, &["bundled"]);
    says(&bench.lab(&["add", "../mine", "--image", "bzImage"]), 2, &["cannot be a kernel's name"]);
    says(&bench.lab(&["add", "x", "--image", "modules/kvm-amd.ko"]), 2, &["ELF"]);
    says(&bench.lab(&["remove", "debian-6.12"]), 2, &["lab cache --remove debian-6.12"]);
    says(&bench.lab(&["remove", "mine"]), 0, &["free again"]);
    says(&bench.lab(&["remove", "mine"]), 2, &["lab add"]);
    says(&bench.lab(&["cache", "--remove", "mine"]), 2, &["holds none"]);
}

#[test]
fn a_limit_that_is_no_size_is_said() {
    let bench = Bench::new();
    let out = bench.command(&["lab", "cache"]).env("EVENKEEL_CACHE_LIMIT", "much").output().unwrap();
    says(&out, 2, &["EVENKEEL_CACHE_LIMIT", "8G"]);
}

/// Killed at any moment, it leaves a whole kernel or none, and what it left half done goes with the next one.
#[test]
fn a_lab_that_is_killed_leaves_a_whole_kernel_or_none() {
    let bench = Bench::new();
    let package = bench.package();
    let import = ["lab", "import", package.to_str().unwrap(), "--name", "mine", "--replace"];
    let (mut none, mut whole) = (0, 0);
    for moment in 0..24 {
        let _ = fs::remove_dir_all(bench.at("cache/added/mine"));
        let mut child = bench.command(&import).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(12 * moment));
        child.kill().unwrap();
        child.wait().unwrap();
        let listed = words(&bench.lab(&["list"]));
        if listed.lines().any(|line| line.starts_with("mine ")) {
            let modules = bench.at("cache/added/mine/tree/lib/modules/6.12.1-mine/kernel");
            assert_eq!(fs::read_dir(modules).unwrap().count(), MODULES);
            whole += 1;
        } else {
            none += 1;
        }
    }
    assert!(none > 0, "{none} none, {whole} whole: it was never killed in time");
    says(&bench.command(&import).output().unwrap(), 0, &["6.12.1-mine"]);
    // A tool that outlived its lab for a moment can have written once more after the sweep.
    std::thread::sleep(Duration::from_millis(300));
    says(&bench.lab(&["cache", "--prune"]), 0, &["mine"]);
    assert_eq!(fs::read_dir(bench.at("cache/work")).unwrap().count(), 0);
}

#[test]
fn what_is_missing_is_named_with_its_package() {
    let bench = Bench::new();
    says(&bench.poor(&["fetch", "debian-6.12"]), 3, &["apt-get: not found", "lab import", "lab add"]);
    let package = bench.package();
    let import = ["import", package.to_str().unwrap(), "--name", "mine"];
    says(&bench.poor(&import), 3, &["sha256sum: not found", "apt-get install coreutils"]);
    bench.programs(&["sha256sum"]);
    says(&bench.poor(&import), 3, &["dpkg-deb: not found", "apt-get install dpkg"]);
    bench.programs(&["dpkg-deb", "tar", "rm"]);
    says(&bench.poor(&import), 3, &["setpriv: not found", "apt-get install util-linux"]);

    let xz = bench.at("modules/kvm-amd.ko");
    fs::write(&xz, module()).unwrap();
    assert!(Command::new("xz").arg(&xz).status().unwrap().success());
    let add = ["add", "mine", "--image", "bzImage", "--modules", "modules"];
    says(&bench.poor(&add), 3, &["xz: not found", "apt-get install xz-utils"]);
    bench.programs(&["xz"]);
    says(&bench.poor(&add), 0, &["6.12.1-mine"]);

    let run = ["run", "mine", "--", "evenkeel", "hosts"];
    says(&bench.poor(&run), 3, &["qemu-system-x86_64: not found", "apt-get install qemu-system-x86"]);
    for file in ["evenkeel", "evenkeel-lab-init"] {
        fs::remove_file(bench.at("static/x86_64").join(file)).unwrap();
        says(
            &bench.poor(&run),
            3,
            &[&format!("static x86_64 {file}"), "cargo xtask cross", "EVENKEEL_STATIC"],
        );
        fs::write(bench.at("static/x86_64").join(file), "").unwrap();
    }
}

#[test]
fn a_kernel_that_is_not_there_says_how_to_get_it() {
    let bench = Bench::new();
    says(&bench.lab(&["run", "debian-6.12", "--", "evenkeel"]), 3, &["evenkeel lab fetch debian-6.12"]);
    says(&bench.lab(&["run", "debian-2.6", "--", "evenkeel"]), 2, &["debian-2.6", "debian-6.12"]);
    says(&bench.lab(&["fetch", "debian-2.6"]), 2, &["debian-2.6", "debian-6.12"]);
    says(&bench.lab(&["fetch", "6.1-cloud-amd64\u{fc}"]), 3, &["release is like"]);
}

#[test]
fn a_bisection_among_bundled_captures_boots_nothing() {
    let bench = Bench::new();
    let kernels = "debian-6.12.43,debian-6.12.74,debian-6.12.85";
    let facet = "KVM_CAP_DISABLE_QUIRKS2";
    let out = bench.poor(&["bisect", facet, "debian-6.1", "debian-6.12", "--kernels", kernels]);
    says(&out, 0, &["bundled", "0 booted", "X86-012", "it does not change once and stay"]);
    let out = bench.poor(&["bisect", facet, "debian-6.12.43", "debian-6.12", "--kernels", kernels]);
    says(&out, 0, &["old value:  debian-6.12.74", "new value:   debian-6.12.85", "255", "2047", "0 booted"]);
    let json = ["bisect", facet, "debian-6.12.43", "debian-6.12", "--kernels", kernels, "--format", "json"];
    let report: serde_json::Value = serde_json::from_slice(&bench.poor(&json).stdout).unwrap();
    assert_eq!(report["schema"], "evenkeel.bisect/1");
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema/bisect.json");
    let schema = serde_json::from_str(&fs::read_to_string(schema).unwrap()).unwrap();
    jsonschema::validate(&schema, &report).unwrap();
    assert_eq!(report["first_new"]["host"], "debian-6.12.85");
    assert_eq!((&report["monotonic"], &report["causes"][0]), (&true.into(), &"X86-013".into()));

    for (args, part) in [
        (["bisect", "cpuid.7.0.ecx.shstk", "debian-6.1", "debian-6.12"], "is the same on"),
        (["bisect", "no.such.facet", "debian-6.1", "debian-6.12"], "nothing called"),
        (["bisect", facet, "debian-6.1", "debian-6.12-arm64"], "lanes"),
        (["bisect", facet, "debian-6.1", "debian-6.1"], "one host"),
    ] {
        says(&bench.poor(&[&args[..], &["--kernels", kernels]].concat()), 2, &[part]);
    }
}

/// A kernel of the user's has no place in the order of Debian's versions.
#[test]
fn added_kernels_are_bisected_in_the_order_that_is_given() {
    let bench = Bench::new();
    says(&bench.lab(&["add", "mine", "--image", "bzImage"]), 0, &["kvm_amd"]);
    says(&bench.poor(&["bisect", "cap.213", "debian-6.1", "mine"]), 2, &["--kernels A,B,C"]);
    let out = bench.poor(&["bisect", "cap.213", "debian-6.1", "mine", "--kernels", "debian-6.12"]);
    says(&out, 3, &["qemu-system-x86_64: not found"]);
}

/// What stands in a path that a user gave is told, not followed.
#[test]
fn files_of_other_kinds_are_refused() {
    let bench = Bench::new();
    let refused = |path: &Path| {
        says(&bench.lab(&["add", "x", "--image", path.to_str().unwrap()]), 2, &["no kernel image"]);
    };
    refused(&bench.at("cache"));
    refused(Path::new("/dev/zero"));
}

/// An archive with two kernels, on disk, and an apt-get that knows only it.
struct Archive {
    bench: Bench,
    path: std::ffi::OsString,
}

/// Releases in the archive.
const SERVED: [&str; 2] = ["6.12.1+deb13-cloud-amd64", "6.12.2+deb13-cloud-amd64"];

impl Archive {
    fn new() -> Archive {
        let bench = Bench::new();
        let mut index = String::new();
        for release in SERVED {
            let root = bench.at(release);
            fs::create_dir_all(root.join("DEBIAN")).unwrap();
            fs::create_dir_all(root.join("boot")).unwrap();
            let control = format!(
                "Package: linux-image-{release}\nVersion: 1\nArchitecture: amd64\n\
                 Maintainer: me <me@example>\nDescription: x\n"
            );
            fs::write(root.join("DEBIAN/control"), control).unwrap();
            let mut image = bzimage(release);
            image.resize(1 << 20, 0);
            fs::write(root.join(format!("boot/vmlinuz-{release}")), image).unwrap();
            let file = bench.at(&format!("{release}.deb"));
            let mut build = Command::new("dpkg-deb");
            build.args(["-Znone", "--root-owner-group", "-b"]).arg(&root).arg(&file);
            assert!(build.output().unwrap().status.success());
            let sum = Command::new("sha256sum").arg(&file).output().unwrap().stdout;
            index += &format!(
                "Package: linux-image-{release}\nVersion: {}-1\nArchitecture: amd64\nFilename: {release}.deb\n\
                 Size: {}\nSHA256: {}\n\n",
                &release[..6],
                fs::metadata(&file).unwrap().len(),
                &String::from_utf8_lossy(&sum)[..64]
            );
        }
        fs::write(bench.at("Packages"), index).unwrap();
        let (packages, base) = (bench.at("Packages"), bench.folder.path().display().to_string());
        // Asked without the lab's configuration, it is the machine's apt, which names a mirror.
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in\n\
             *lab.conf*indextargets*) printf '%s\\t%s\\t%s\\n' {} trixie copy:{base} ;;\n\
             *lab.conf*update*) echo updated >>{base}/updates ;;\n\
             *indextargets*) printf 'http://mirror.example/debian\\ttrixie\\n' ;;\n\
             *) exit 9 ;;\nesac\n",
            packages.display()
        );
        let program = bench.at("bin/apt-get");
        fs::write(&program, script).unwrap();
        let mut mode = fs::metadata(&program).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        fs::set_permissions(&program, mode).unwrap();
        let mut path = bench.at("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        Archive { bench, path }
    }

    fn fetch(&self, kernels: &[&str], limit: &str) -> Output {
        let mut command = self.bench.command(&[&["lab", "fetch"], kernels].concat());
        command.env("PATH", &self.path).env("EVENKEEL_CACHE_LIMIT", limit).output().unwrap()
    }

    /// What is in the cache.
    fn here(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.bench.at("cache/kernels"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn what_is_served_is_fetched_and_the_rest_is_said() {
    let archive = Archive::new();
    let out = archive.fetch(&["debian-6.12.43", SERVED[0]], "1G");
    let bundled = "captured earlier: its capture is bundled as debian-6.12.43";
    says(&out, 3, &["debian-6.12.43: not served any more", bundled, "1 fetched", "1 not served any more"]);
    assert_eq!(archive.here(), [SERVED[0]]);
    let updates = fs::read_to_string(archive.bench.at("updates")).unwrap();
    assert!((1..=3).contains(&updates.lines().count()), "{updates}");
    says(&archive.fetch(&[SERVED[0]], "1G"), 0, &["0 fetched, 1 were here"]);
    // What was fetched has a name from then on.
    let run = archive.bench.lab(&["run", SERVED[0], "--", "evenkeel"]);
    says(&run, 3, &["kvm_amd: is not among this kernel's modules"]);
    says(&archive.fetch(&["6.12.3+deb13-cloud-amd64"], "1G"), 3, &["serves no kernel 6.12.3"]);
    // All that are listed, of which none is served.
    says(&archive.fetch(&[], "1G"), 3, &["0 fetched"]);
}

#[test]
fn a_file_that_is_not_the_one_of_the_index_is_refused() {
    let archive = Archive::new();
    let file = archive.bench.at(&format!("{}.deb", SERVED[1]));
    let mut content = fs::read(&file).unwrap();
    let last = content.len() - 1;
    content[last] ^= 1;
    fs::write(&file, content).unwrap();
    says(&archive.fetch(&SERVED, "1G"), 3, &["1 fetched", "1 failed", SERVED[1]]);
    assert_eq!(archive.here(), [SERVED[0]]);
    assert_eq!(fs::read_dir(archive.bench.at("cache/partial")).unwrap().count(), 0);
}

#[test]
fn the_limit_is_kept_by_removing_what_was_used_least_recently() {
    let archive = Archive::new();
    says(&archive.fetch(&[SERVED[0]], "1536k"), 0, &["1 fetched"]);
    let removed = format!("removed {} (", SERVED[0]);
    says(&archive.fetch(&[SERVED[1]], "1536k"), 0, &[&removed, "the cache is full"]);
    assert_eq!(archive.here(), [SERVED[1]]);
    // Both are asked for: neither may go.
    says(&archive.fetch(&SERVED, "1536k"), 0, &["more than its limit of 1.5 MiB", "1 fetched, 1 were here"]);
    assert_eq!(archive.here(), SERVED);
}
