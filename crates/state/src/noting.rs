//! A backend that remembers what a VMM selects and no ioctl tells afterwards: the source of a [`Manifest`].
//!
//! It sits at the one way to the kernel, so that nothing can be selected past it, and a VMM that is made with it needs no
//! bookkeeping of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use evenkeel_sys::layout::{long, word};
use evenkeel_sys::{Arg, Backend, FdKind, Handle, Ram, Refusal, Request, RunPage, Slot, Source, Vcpu, Vm};

use crate::manifest::{Manifest, Noted, Role};
use crate::registers::SVE_VECTOR_LENGTHS;

/// Passes calls on to another backend and notes those that succeed and select something.
pub struct Noting<'i> {
    inner: &'i dyn Backend,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    /// What each handle is, and of which VM.
    roles: HashMap<u32, (usize, Role)>,
    vms: Vec<Book>,
}

/// One VM's.
#[derive(Default)]
struct Book {
    manifest: Manifest,
    memory: BTreeMap<u32, (Slot, Arc<Ram>)>,
    vcpus: u32,
    devices: u32,
}

const CAP_MANUAL_DIRTY_LOG_PROTECT2: u32 = 168;

/// Calls that select something whatever their argument.
const SELECTING: &[&str] = &[
    "KVM_ENABLE_CAP",
    "KVM_CREATE_IRQCHIP",
    "KVM_CREATE_PIT2",
    "KVM_SET_TSS_ADDR",
    "KVM_SET_IDENTITY_MAP_ADDR",
    "KVM_SET_GSI_ROUTING",
    "KVM_XEN_HVM_CONFIG",
    "KVM_X86_SETUP_MCE",
    "KVM_SET_BOOT_CPU_ID",
    "KVM_REINJECT_CONTROL",
    "KVM_SET_PMU_EVENT_FILTER",
    "KVM_X86_SET_MSR_FILTER",
    "KVM_SET_GUEST_DEBUG",
    "KVM_ARM_VCPU_INIT",
    "KVM_ARM_VCPU_FINALIZE",
    "KVM_ARM_SET_COUNTER_OFFSET",
];

/// Of these only the last one counts.
const REPLACING: &[&str] = &[
    "KVM_SET_GSI_ROUTING",
    "KVM_SET_GUEST_DEBUG",
    "KVM_SET_PMU_EVENT_FILTER",
    "KVM_X86_SET_MSR_FILTER",
    "KVM_X86_SETUP_MCE",
    "KVM_REINJECT_CONTROL",
];

impl<'i> Noting<'i> {
    /// Notes what goes to this backend.
    pub fn new(inner: &'i dyn Backend) -> Self {
        Noting { inner, books: Mutex::default() }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a VM up that another VMM made by itself and lent: what it selected so far is in `manifest`, its vCPUs are these.
    /// What is selected from now on through this backend is noted as well. Returns the VM's number.
    pub fn take_up(&self, manifest: Manifest, vm: &Vm<'_>, vcpus: &[&Vcpu<'_>]) -> usize {
        let mut books = self.books();
        let number = books.vms.len();
        books.roles.insert(vm.handle().0, (number, Role::Vm));
        for (index, vcpu) in (0..).zip(vcpus) {
            books.roles.insert(vcpu.handle().0, (number, Role::Vcpu(index)));
        }
        books.vms.push(Book { manifest, vcpus: vcpus.len() as u32, ..Book::default() });
        number
    }

    /// What was selected for the VM with this number, counted from 0 in the order in which VMs were made.
    pub fn manifest(&self, vm: usize) -> Option<Manifest> {
        self.books().vms.get(vm).map(|book| book.manifest.clone())
    }

    /// The memory that this VM has now, by slot.
    pub fn memory(&self, vm: usize) -> Vec<(Slot, Arc<Ram>)> {
        self.books().vms.get(vm).map(|book| book.memory.values().cloned().collect()).unwrap_or_default()
    }

    fn note(&self, fd: Handle, request: &Request, argument: Vec<u8>, payload: Vec<u8>, returned: i32) {
        let mut books = self.books();
        let books = &mut *books;
        let role = books.roles.get(&fd.0).copied();
        let call = request.name.to_owned();
        match (request.name, role) {
            ("KVM_CREATE_VM", _) => {
                books.roles.insert(returned as u32, (books.vms.len(), Role::Vm));
                let noted = Noted { on: Role::System, call, argument, payload };
                books.vms.push(Book { manifest: Manifest { calls: vec![noted] }, ..Book::default() });
            }
            (name, Some((vm, on))) => {
                let Some(book) = books.vms.get_mut(vm) else { return };
                if name == "KVM_CREATE_VCPU" {
                    books.roles.insert(returned as u32, (vm, Role::Vcpu(book.vcpus)));
                    book.vcpus += 1;
                } else if name == "KVM_CREATE_DEVICE" {
                    books.roles.insert(word(&argument, 4), (vm, Role::Device(book.devices)));
                    book.devices += 1;
                } else if !selects(on, name, &argument, &payload) {
                    return;
                }
                let mut noted = Noted { on, call, argument, payload };
                forget_numbers(&mut noted);
                book.add(noted);
            }
            _ => {}
        }
    }
}

impl Book {
    fn add(&mut self, noted: Noted) {
        let calls = &mut self.manifest.calls;
        match noted.call.as_str() {
            // Said once more at each reset of the machine; the features cannot change.
            "KVM_ARM_VCPU_INIT" if calls.contains(&noted) => return,
            // The new takes the place of the old.
            name if REPLACING.contains(&name) => calls.retain(|c| c.call != noted.call || c.on != noted.on),
            _ => {}
        }
        calls.push(noted);
    }
}

/// File descriptors mean nothing elsewhere.
fn forget_numbers(noted: &mut Noted) {
    match noted.call.as_str() {
        "KVM_CREATE_DEVICE" => noted.argument.iter_mut().skip(4).take(4).for_each(|byte| *byte = 0),
        "KVM_SET_DEVICE_ATTR" | "KVM_SET_ONE_REG" => {
            let at = if noted.call == "KVM_SET_ONE_REG" { 8 } else { 16 };
            noted.argument.iter_mut().skip(at).for_each(|byte| *byte = 0);
        }
        _ => {}
    }
}

/// Whether a call selects what cannot be read afterwards. Attributes and registers that can be read are state.
fn selects(on: Role, name: &str, argument: &[u8], payload: &[u8]) -> bool {
    match (on, name) {
        // How writes are logged, for whoever copies memory: nothing of the guest's.
        (Role::Vm, "KVM_ENABLE_CAP") if word(argument, 0) == CAP_MANUAL_DIRTY_LOG_PROTECT2 => false,
        (_, "KVM_SET_ONE_REG") => long(argument, 0) == SVE_VECTOR_LENGTHS,
        (Role::Vm, "KVM_SET_DEVICE_ATTR") => true,
        // The rate of the TSC for vCPUs that are made later.
        (Role::Vm, "KVM_SET_TSC_KHZ") => true,
        // On x86 the offset of the TSC, which can be read.
        (Role::Vcpu(_), "KVM_SET_DEVICE_ATTR") if payload.len() == 8 => false,
        // KVM_ARM_VCPU_PMU_V3_CTRL. Interrupts of the timers and the page of stolen time can be read.
        (Role::Vcpu(_), "KVM_SET_DEVICE_ATTR") => word(argument, 4) == 0,
        // KVM_DEV_ARM_VGIC_GRP_ADDR, _NR_IRQS, _CTRL with INIT alone, _MAINT_IRQ.
        (Role::Device(_), "KVM_SET_DEVICE_ATTR") => match word(argument, 4) {
            0 | 3 | 9 => true,
            4 => long(argument, 8) == 0,
            _ => false,
        },
        _ => SELECTING.contains(&name),
    }
}

impl Backend for Noting<'_> {
    fn open(&self, path: &str, kind: FdKind) -> Result<Handle, Refusal> {
        self.inner.open(path, kind)
    }

    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        match arg {
            // By far the most frequent one, from many threads at once, and it selects nothing.
            Arg::Int(_) if request.name == "KVM_RUN" => self.inner.call(fd, request, arg),
            Arg::Int(value) => {
                let returned = self.inner.call(fd, request, Arg::Int(value))?;
                self.note(fd, request, value.to_le_bytes().to_vec(), Vec::new(), returned);
                Ok(returned)
            }
            Arg::In(bytes) => {
                let returned = self.inner.call(fd, request, Arg::In(bytes))?;
                self.note(fd, request, bytes.to_vec(), Vec::new(), returned);
                Ok(returned)
            }
            Arg::Out(bytes) => {
                let returned = self.inner.call(fd, request, Arg::Out(bytes))?;
                if request.creates.is_some() {
                    self.note(fd, request, bytes.to_vec(), Vec::new(), returned);
                }
                Ok(returned)
            }
            Arg::Pointing { head, payload } => {
                let returned = self.inner.call(fd, request, Arg::Pointing { head, payload })?;
                if request.payload.is_some_and(|(_, flow)| !flow.comes_out()) {
                    self.note(fd, request, head.to_vec(), payload.to_vec(), returned);
                }
                Ok(returned)
            }
        }
    }

    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        self.inner.read(source)
    }

    fn close(&self, fd: Handle) {
        // Handles are never used again; what the VM was made of stays known.
        self.inner.close(fd);
    }

    fn set_memory(&self, vm: Handle, slot: Slot, ram: Option<&Arc<Ram>>) -> Result<(), Refusal> {
        self.inner.set_memory(vm, slot, ram)?;
        let mut books = self.books();
        let books = &mut *books;
        if let Some((number, Role::Vm)) = books.roles.get(&vm.0).copied()
            && let Some(book) = books.vms.get_mut(number)
        {
            match ram {
                Some(ram) if slot.length > 0 => drop(book.memory.insert(slot.number, (slot, ram.clone()))),
                _ => drop(book.memory.remove(&slot.number)),
            }
        }
        Ok(())
    }

    fn map_run(&self, vcpu: Handle, length: usize) -> Result<Arc<RunPage>, Refusal> {
        self.inner.map_run(vcpu, length)
    }
}
