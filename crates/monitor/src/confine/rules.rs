//! Which system calls which kind of thread makes, and why: a table. A filter is made from it, an audit counts by it.
//!
//! A rule is there because something needs it. One that no life of a machine uses is removed, unless it has a reason to be
//! used seldom, which is in the table: the tests drive machines through whole lives and compare.

use std::fmt;
use std::str::FromStr;

use evenkeel_sys::{requests as r, uffd};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use syscalls::Sysno;

/// The kinds of threads of a monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Thread {
    /// Runs a vCPU, and does what its exits ask of the devices.
    Vcpu,
    /// Listens to what comes for the devices from outside: a tap, a console.
    Io,
    /// Serves the control socket.
    Control,
    /// Pauses, resumes and saves the machine.
    Snapshot,
    /// Deals with faults in guest memory: of those who write while it is saved, and of those who want what is not loaded yet.
    Memory,
    /// Started the others, and waits for the end.
    Main,
}

impl Thread {
    /// All of them.
    pub const ALL: [Thread; 6] =
        [Thread::Vcpu, Thread::Io, Thread::Control, Thread::Snapshot, Thread::Memory, Thread::Main];

    /// Its name, in messages and documents.
    pub const fn name(self) -> &'static str {
        match self {
            Thread::Vcpu => "vcpu",
            Thread::Io => "io",
            Thread::Control => "control",
            Thread::Snapshot => "snapshot",
            Thread::Memory => "memory",
            Thread::Main => "main",
        }
    }
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// With which arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// Any.
    Any,
    /// The argument of this place (from 0) has this value.
    Is(u8, u32),
    /// The argument of this place is the number of this process.
    Own(u8),
    /// The argument of this place has none of these bits.
    Without(u8, u32),
}

impl Only {
    /// Whether a call with these arguments is meant.
    pub fn takes(self, arguments: &[u64; 6]) -> bool {
        match self {
            Only::Any => true,
            Only::Is(place, value) => arguments[usize::from(place)] as u32 == value,
            Only::Own(place) => arguments[usize::from(place)] as u32 == std::process::id(),
            Only::Without(place, bits) => arguments[usize::from(place)] & u64::from(bits) == 0,
        }
    }
}

/// A system call that some threads may make.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name in the kernel. An architecture that has not got it has no such rule.
    pub call: &'static str,
    /// With which arguments.
    pub only: Only,
    /// What the arguments mean, where the number does not tell: the name of an ioctl.
    pub what: &'static str,
    /// Who may.
    pub threads: &'static [Thread],
    /// What for.
    pub why: &'static str,
    /// Why a life of a machine may go by without it.
    pub seldom: Option<&'static str>,
}

impl Rule {
    /// How it is named in an audit.
    pub fn title(&self) -> String {
        if self.what.is_empty() { self.call.to_owned() } else { format!("{} {}", self.call, self.what) }
    }

    const fn seldom(mut self, why: &'static str) -> Rule {
        self.seldom = Some(why);
        self
    }
}

/// A call with any arguments.
const fn any(call: &'static str, threads: &'static [Thread], why: &'static str) -> Rule {
    Rule { call, only: Only::Any, what: "", threads, why, seldom: None }
}

/// An ioctl of this request.
const fn ioctl(request: &evenkeel_sys::Request, threads: &'static [Thread], why: &'static str) -> Rule {
    let only = Only::Is(1, request.number);
    Rule { call: "ioctl", only, what: request.name, threads, why, seldom: None }
}

const fn with(
    call: &'static str,
    only: Only,
    what: &'static str,
    threads: &'static [Thread],
    why: &'static str,
) -> Rule {
    Rule { call, only, what, threads, why, seldom: None }
}

const VCPU: &[Thread] = &[Thread::Vcpu];
const IO: &[Thread] = &[Thread::Io];
const THREADS: &[Thread] = &[Thread::Vcpu, Thread::Io, Thread::Control, Thread::Snapshot, Thread::Memory];
/// All but those that only deal with faults.
const BUSY: &[Thread] = &[Thread::Vcpu, Thread::Io, Thread::Control, Thread::Snapshot, Thread::Main];
/// Those that run or stop vCPUs.
const MOVERS: &[Thread] = &[Thread::Vcpu, Thread::Io, Thread::Control, Thread::Snapshot];
/// Those that wait for nothing with ppoll otherwise.
const QUIET: &[Thread] = &[Thread::Vcpu, Thread::Snapshot, Thread::Main];
const CLOSERS: &[Thread] = &[Thread::Io, Thread::Control, Thread::Snapshot, Thread::Memory, Thread::Main];
const CONTROL: &[Thread] = &[Thread::Control];
const SNAPSHOT: &[Thread] = &[Thread::Snapshot];
const MEMORY: &[Thread] = &[Thread::Memory];
const MAIN: &[Thread] = &[Thread::Main];
const ALL: &[Thread] = &Thread::ALL;
const DEVICES: &[Thread] = &[Thread::Vcpu, Thread::Io];

const FICLONE: u32 = 0x4004_9409;
const TCGETS: u32 = 0x5401;
const PROT_EXEC: u32 = 4;
const ALLOCATOR: &str = "the allocator asks only when what it has is used up";
const REFUSED: &str = "only when a call was refused";
const CHECKED: &str = "builds with debug assertions look, others do not";
const SETTLES: &str = "only with local timers to settle";
const NO_DRIVER: &str = "only with a guest that has a driver for the device";
const NEWER: &str = "older kernels have not got it, or not for this VM";
const UFFD: &str = "only with a userfaultfd that takes faults of the kernel";
const LAZY: &str = "only where a guest is restored before its memory is there";
const LOGGED: &str = "only when a guest moves away, or where copy before write cannot be";
const COPIED: &str = "only where copy before write cannot be, or with a disk that is to be copied";
const DISKS: &str = "only where the guest has a disk, and it is to be copied";
const MOVES: &str = "only when a guest moves away";
const STATE: &str = "what a vCPU or the VM is at";
const CLOCK: &str = "only where the clock cannot be read without a call, as under some hypervisors";

/// All rules.
pub const RULES: &[Rule] = &[
    // What every thread does.
    any("futex", BUSY, "locks and condition variables"),
    any("futex", MEMORY, "locks and condition variables").seldom("only when two meet at a lock"),
    any(
        "write",
        BUSY,
        "standard error and output, bells, the file of a snapshot: what is open is all there is",
    ),
    any("write", MEMORY, "the bell that tells of the end of a machine whose memory is damaged").seldom(LAZY),
    with("mmap", Only::Without(2, PROT_EXEC), "without exec", ALL, "the allocator").seldom(ALLOCATOR),
    with("mprotect", Only::Without(2, PROT_EXEC), "without exec", ALL, "the allocator").seldom(ALLOCATOR),
    any("munmap", ALL, "the allocator").seldom(ALLOCATOR),
    any("mremap", ALL, "the allocator, for a large buffer that grows").seldom(ALLOCATOR),
    any("brk", ALL, "the allocator").seldom(ALLOCATOR),
    any("madvise", ALL, "the allocator, and the stack of a thread that ends").seldom(ALLOCATOR),
    any("clock_gettime", ALL, "how long something took").seldom(CLOCK),
    with("ppoll", Only::Is(1, 1), "of one", QUIET, "whether standard error takes a line at once")
        .seldom(REFUSED),
    with("fcntl", Only::Is(1, 1), "F_GETFD", CLOSERS, "a descriptor that is closed is open").seldom(CHECKED),
    any("close", CLOSERS, "what is not needed any more").seldom("most of it is left to the end"),
    any("rt_sigprocmask", THREADS, "the end of a thread"),
    any("sigaltstack", THREADS, "the end of a thread"),
    any("exit", THREADS, "the end of a thread"),
    // A vCPU.
    ioctl(&r::KVM_RUN, VCPU, "runs the guest"),
    ioctl(&r::KVM_KVMCLOCK_CTRL, VCPU, "tells a guest that it stood"),
    any("rt_sigreturn", VCPU, "the end of a handler: a vCPU is taken out of KVM_RUN by a signal"),
    any("getpid", VCPU, "a vCPU that settles sends itself the signal"),
    any("gettid", VCPU, "a vCPU that settles sends itself the signal"),
    ioctl(&r::KVM_SET_SIGNAL_MASK, VCPU, "a vCPU settles").seldom(SETTLES),
    with("tgkill", Only::Own(0), "in this process", MOVERS, "takes vCPUs out of KVM_RUN, also at the end"),
    with("tgkill", Only::Own(0), "in this process", MAIN, "takes vCPUs out of KVM_RUN at the end")
        .seldom("only when the time is over"),
    // Devices.
    ioctl(&r::KVM_IRQ_LINE, DEVICES, "interrupts").seldom(NO_DRIVER),
    any("pread64", DEVICES, "a disk is read").seldom(NO_DRIVER),
    any("pwrite64", DEVICES, "a disk is written").seldom(NO_DRIVER),
    any("fdatasync", DEVICES, "a disk is flushed").seldom(NO_DRIVER),
    any("getrandom", DEVICES, "the guest's entropy device").seldom(NO_DRIVER),
    any("readv", DEVICES, "frames and input").seldom(NO_DRIVER),
    any("writev", DEVICES, "frames and output").seldom(NO_DRIVER),
    any("read", &[Thread::Vcpu], "a device's own bell").seldom(NO_DRIVER),
    any("ppoll", IO, "waits for what comes to the devices, and for a wish"),
    any("read", IO, "the bell that tells of a wish; input"),
    // Control.
    any("ppoll", CONTROL, "waits for clients"),
    any("accept4", CONTROL, "a client comes"),
    any("recvmsg", CONTROL, "a request, with the descriptor that a snapshot goes to"),
    any("sendto", CONTROL, "answers and events"),
    any("getsockopt", CONTROL, "who a client is"),
    with("fcntl", Only::Is(1, 3), "F_GETFL", CONTROL, "whether a descriptor that was passed can be written"),
    any("sendmsg", CONTROL, "the file of its memory, for who moves the guest").seldom(MOVES),
    any("fstat", CONTROL, "whether a descriptor that was passed is a file"),
    any("read", CONTROL, "the bell that says that work is done"),
    // Snapshots.
    any("ftruncate", SNAPSHOT, "the file of a snapshot"),
    any("lseek", SNAPSHOT, "the file of a snapshot"),
    any("fdatasync", SNAPSHOT, "the file of a snapshot"),
    any("getrandom", SNAPSHOT, "the id of a snapshot"),
    // A guest that moves away, or goes on.
    any("flock", SNAPSHOT, "the disks, which another process may use, or which are used here")
        .seldom("only with a disk"),
    with("fcntl", Only::Is(1, 1030), "F_DUPFD_CLOEXEC", SNAPSHOT, "the file of its memory").seldom(MOVES),
    ioctl(&r::KVM_CHECK_EXTENSION, SNAPSHOT, "what there is to be saved"),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_MSR_INDEX_LIST, SNAPSHOT, STATE),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_MSR_FEATURE_INDEX_LIST, SNAPSHOT, STATE),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_MSRS, SNAPSHOT, STATE),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_CPUID2, SNAPSHOT, STATE),
    ioctl(&r::KVM_GET_REG_LIST, SNAPSHOT, STATE).seldom(NEWER),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_NESTED_STATE, SNAPSHOT, STATE),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_IRQCHIP, SNAPSHOT, STATE),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_PIT2, SNAPSHOT, STATE),
    ioctl(&r::KVM_GET_CLOCK, SNAPSHOT, STATE),
    ioctl(&r::KVM_GET_MP_STATE, SNAPSHOT, STATE),
    ioctl(&r::KVM_GET_VCPU_EVENTS, SNAPSHOT, STATE),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_DEBUGREGS, SNAPSHOT, STATE),
    ioctl(&r::KVM_GET_REGS, SNAPSHOT, STATE),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_SREGS2, SNAPSHOT, STATE).seldom(NEWER),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_SREGS, SNAPSHOT, STATE).seldom("newer kernels have KVM_GET_SREGS2"),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_XCRS, SNAPSHOT, STATE),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_LAPIC, SNAPSHOT, STATE),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_XSAVE2, SNAPSHOT, STATE).seldom(NEWER),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_XSAVE, SNAPSHOT, STATE).seldom("newer kernels have KVM_GET_XSAVE2"),
    #[cfg(target_arch = "x86_64")]
    ioctl(&r::KVM_GET_TSC_KHZ, SNAPSHOT, STATE),
    ioctl(&r::KVM_GET_DEVICE_ATTR, SNAPSHOT, STATE).seldom(NEWER),
    ioctl(&r::KVM_HAS_DEVICE_ATTR, SNAPSHOT, STATE).seldom(NEWER),
    any("pread64", SNAPSHOT, "memory, which is read through its file").seldom("only of a machine that runs"),
    ioctl(&uffd::REGISTER, SNAPSHOT, "guards memory, at the first snapshot").seldom(UFFD),
    ioctl(&uffd::WRITEPROTECT, SNAPSHOT, "guards memory, and gives it free").seldom(UFFD),
    any("pwrite64", SNAPSHOT, "a copy of memory, or of a disk").seldom(COPIED),
    // Memory that is copied while it is written to.
    ioctl(&r::KVM_SET_USER_MEMORY_REGION, SNAPSHOT, "what the guest writes is logged, or no longer")
        .seldom(LOGGED),
    ioctl(&r::KVM_ENABLE_CAP, SNAPSHOT, "the log of writes is cleared by hand").seldom(LOGGED),
    ioctl(&r::KVM_GET_DIRTY_LOG, SNAPSHOT, "what the guest wrote").seldom(LOGGED),
    ioctl(&r::KVM_CLEAR_DIRTY_LOG, SNAPSHOT, "what the guest writes from now on").seldom(LOGGED),
    with("ioctl", Only::Is(1, FICLONE), "FICLONE", SNAPSHOT, "a disk of that instant").seldom(DISKS),
    // Faults in guest memory.
    any("ppoll", MEMORY, "waits for those who wait").seldom(UFFD),
    any("read", MEMORY, "who waits").seldom(UFFD),
    any("pread64", MEMORY, "memory that is about to be written to; the capsule that it is loaded from")
        .seldom(UFFD),
    ioctl(&uffd::WRITEPROTECT, MEMORY, "gives free what was copied").seldom(UFFD),
    ioctl(&uffd::WAKE, MEMORY, "who waits for what is there looks again").seldom(UFFD),
    ioctl(&uffd::COPY, MEMORY, "what was loaded and verified").seldom(LAZY),
    ioctl(&uffd::ZEROPAGE, MEMORY, "memory that was saved as zero").seldom(LAZY),
    ioctl(&uffd::POISON, MEMORY, "memory whose chunk is damaged").seldom(LAZY),
    ioctl(&uffd::UNREGISTER, MEMORY, "all is there").seldom(LAZY),
    any("clock_nanosleep", MEMORY, "a guest that begins has the CPUs first").seldom(LAZY),
    with("tgkill", Only::Own(0), "in this process", MEMORY, "ends a machine whose memory is damaged")
        .seldom(LAZY),
    // The end: after the audit was told.
    with("ioctl", Only::Is(1, TCGETS), "TCGETS", MAIN, "whether standard error is a terminal, for colours")
        .seldom("only when it ends with an error"),
    any("exit_group", MAIN, "the end").seldom("an audit is told before it"),
    any("sigaltstack", MAIN, "the end").seldom("an audit is told before it"),
    any("rt_sigprocmask", MAIN, "the end").seldom("an audit is told before it"),
];

/// The rules of a kind of threads, on this architecture.
pub fn of(thread: Thread) -> impl Iterator<Item = &'static Rule> {
    RULES.iter().filter(move |rule| rule.threads.contains(&thread) && number(rule.call).is_some())
}

/// The number of a call here.
pub fn number(call: &str) -> Option<i32> {
    Sysno::from_str(call).ok().map(|number| number.id())
}

/// The name of a call.
pub fn name(number: u32) -> String {
    Sysno::new(number as usize).map_or_else(|| number.to_string(), |call| call.name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_call_a_thread_and_a_reason_and_there_are_no_two_of_one() {
        let mut seen = std::collections::BTreeSet::new();
        for rule in RULES {
            assert!(
                syscalls::x86_64::Sysno::from_str(rule.call).is_ok()
                    || syscalls::aarch64::Sysno::from_str(rule.call).is_ok(),
                "{}",
                rule.call
            );
            assert!(!rule.threads.is_empty() && !rule.why.is_empty(), "{}", rule.title());
            assert_ne!(rule.seldom, Some(""));
            for thread in rule.threads {
                assert!(seen.insert((rule.title(), *thread)), "{} twice for {thread}", rule.title());
            }
        }
    }

    /// What no thread may ever do, whatever the table becomes.
    #[test]
    fn nothing_opens_executes_traces_or_starts_anything() {
        let never = [
            "open",
            "openat",
            "openat2",
            "creat",
            "execve",
            "execveat",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "socket",
            "connect",
            "bind",
            "bpf",
            "init_module",
            "finit_module",
            "kexec_load",
            "mount",
            "unshare",
            "setns",
            "clone",
            "fork",
            "vfork",
            "kill",
            "tkill",
            "rt_sigaction",
            "prctl",
            "chmod",
            "fchmod",
            "fchown",
            "unlink",
            "unlinkat",
            "rename",
            "renameat2",
            "io_uring_setup",
            "perf_event_open",
            "userfaultfd",
            "pidfd_getfd",
            "memfd_create",
            "keyctl",
            "add_key",
            "setuid",
            "capset",
        ];
        for rule in RULES {
            assert!(!never.contains(&rule.call), "{} is never to be allowed", rule.call);
            if ["mmap", "mprotect"].contains(&rule.call) {
                assert_eq!(rule.only, Only::Without(2, PROT_EXEC), "{}", rule.call);
            }
            if rule.call == "ioctl" {
                assert!(matches!(rule.only, Only::Is(1, _)), "any ioctl at all");
            }
        }
    }
}
