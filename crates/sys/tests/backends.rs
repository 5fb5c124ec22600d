//! The four back-ends, over a small kernel of our own: no /dev/kvm is needed.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use evenkeel_sys::requests::*;
use evenkeel_sys::{
    Arg, Backend, Creates, Errno, Fault, Faulty, FdKind, Handle, Log, Recording, Refusal, Replaying, Request,
    Rule, Source, System, When,
};

/// Answers as a kernel would that has capability 7 only, three feature MSRs, and refuses the one in the middle.
#[derive(Default)]
struct Toy {
    next: Mutex<u32>,
}

impl Toy {
    fn handle(&self) -> u32 {
        let mut next = self.next.lock().unwrap();
        *next += 1;
        *next - 1
    }
}

impl Backend for Toy {
    fn open(&self, path: &str, _: FdKind) -> Result<Handle, Refusal> {
        if path == "/dev/kvm" { Ok(Handle(self.handle())) } else { Err(Errno::ENOENT.into()) }
    }

    fn call(&self, _: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        if let Some(Creates::Returned(_)) = request.creates {
            return Ok(self.handle() as i32);
        }
        match (request.name, arg) {
            ("KVM_GET_API_VERSION", _) => Ok(12),
            ("KVM_CHECK_EXTENSION", Arg::Int(cap)) => Ok(i32::from(cap == 7)),
            ("KVM_GET_MSR_FEATURE_INDEX_LIST", Arg::Out(bytes)) => {
                let room = evenkeel_sys::layout::word(bytes, 0);
                bytes[..4].copy_from_slice(&600u32.to_ne_bytes());
                if room < 600 {
                    return Err(Errno::E2BIG.into());
                }
                for (at, place) in bytes[4..4 + 600 * 4].chunks_exact_mut(4).enumerate() {
                    place.copy_from_slice(&(at as u32).to_ne_bytes());
                }
                Ok(0)
            }
            ("KVM_GET_MSRS", Arg::Out(bytes)) => {
                let mut done = 0;
                for entry in bytes[8..].chunks_exact_mut(16) {
                    if evenkeel_sys::layout::word(entry, 0) == 300 {
                        break;
                    }
                    entry[8] = 0x5a;
                    done += 1;
                }
                Ok(done)
            }
            ("KVM_GET_ONE_REG", Arg::Pointing { payload, .. }) => {
                payload.fill(0x11);
                Ok(0)
            }
            _ => Err(Errno::ENOTTY.into()),
        }
    }

    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        Ok(source.to_string().into_bytes())
    }

    fn close(&self, _: Handle) {}
}

/// A few questions of every form; the answers as text.
fn ask(backend: &dyn Backend) -> Result<String, evenkeel_sys::Error> {
    let system = System::open(backend)?;
    let mut said = format!("{:?} {:?}", system.api_version(), system.check_extension(7));
    let list = system.msr_list(&KVM_GET_MSR_FEATURE_INDEX_LIST)?;
    let values = system.feature_msrs(&list);
    let refused: Vec<_> = values.iter().filter_map(|v| v.as_ref().err()).map(ToString::to_string).collect();
    said +=
        &format!(" {} {} {refused:?}", list.len(), values.iter().flatten().filter(|v| **v == 0x5a).count());
    let vm = system.create_vm(0)?;
    let vcpu = vm.create_vcpu(0)?;
    said += &format!(" {:?}", vcpu.one_reg(0x6030_0000_0013_c020));
    said += &format!(" {:?}", vcpu.get(&KVM_GET_REGS, 0).map_err(|e| e.to_string()));
    said += &format!(" {:?}", backend.read(Source::File("/proc/cmdline")));
    Ok(said)
}

#[test]
fn lists_grow_and_refusals_name_the_msr() {
    let said = ask(&Toy::default()).unwrap();
    assert!(said.contains("600 599"), "{said}");
    assert!(said.contains("KVM_GET_MSRS(0x12c): refused"), "{said}");
    assert!(said.contains("KVM_GET_REGS(): ENOTTY (25, "), "{said}");
}

#[test]
fn what_was_recorded_is_replayed_through_json() {
    let recording = Recording::new(Toy::default());
    let said = ask(&recording).unwrap();
    let log = recording.into_log();
    let text = log.to_json_lines();
    let read = Log::from_json_lines(&text).unwrap();
    assert_eq!(read, log);
    let replaying = Replaying::new(read);
    assert_eq!(ask(&replaying).unwrap(), said);
    assert_eq!(replaying.left(), 0);
}

#[test]
fn a_call_that_is_not_the_next_in_the_log_names_both() {
    let recording = Recording::new(Toy::default());
    ask(&recording).unwrap();
    let replaying = Replaying::new(recording.into_log());
    let system = System::open(&replaying).unwrap();
    let error = system.check_extension(7).unwrap_err();
    assert!(error.is_off_script());
    let words = error.to_string();
    assert!(words.contains("KVM_CHECK_EXTENSION(fd 0, 0x7) was asked"), "{words}");
    assert!(words.contains("call 2 of the log is KVM_GET_API_VERSION(fd 0, 0x0)"), "{words}");

    // The right call with another argument is another call; so is one after the end.
    system.api_version().unwrap();
    assert!(system.check_extension(8).unwrap_err().is_off_script());
    let empty = Replaying::new(Log::default());
    let error = System::open(&empty).unwrap_err().to_string();
    assert!(error.contains("the log ends after 0 calls"), "{error}");
}

#[test]
fn a_bad_log_is_refused_with_its_line() {
    let error =
        Log::from_json_lines("{\"call\":\"open\"}\n\n{\"call\":\"x\",\"in\":\"4:zz\"}\n").unwrap_err();
    assert_eq!(error.line, 3);
    for bad in ["4", "4:0", "1:0000", "99999999999:", "x:00", "-1:"] {
        let line = format!("{{\"call\":\"x\",\"out\":\"{bad}\"}}");
        assert!(Log::from_json_lines(&line).is_err(), "{bad}");
    }
}

fn plan(when: When, fault: Fault) -> Faulty<Toy> {
    Faulty::new(Toy::default(), vec![Rule { when, fault }])
}

#[test]
fn planned_failures_hit_the_planned_calls() {
    let faulty = plan(When::Nth(1), Fault::Fail(Errno::EIO));
    let system = System::open(&faulty).unwrap();
    assert_eq!(system.api_version().unwrap_err().errno(), Some(Errno::EIO));
    assert_eq!(system.api_version(), Ok(12));
    assert_eq!(faulty.spoiled(), [(1, "KVM_GET_API_VERSION".to_owned())]);

    let faulty = plan(When::NthOf("KVM_CHECK_EXTENSION".to_owned(), 1), Fault::Fail(Errno::ENOMEM));
    let system = System::open(&faulty).unwrap();
    assert_eq!(system.check_extension(7), Ok(1));
    assert_eq!(
        system.check_extension(7).unwrap_err().to_string(),
        "KVM_CHECK_EXTENSION(7): ENOMEM (12, Cannot allocate memory)"
    );
    assert_eq!(system.check_extension(7), Ok(1));

    let faulty = plan(When::Every("KVM_CHECK_EXTENSION".to_owned()), Fault::Lie);
    let system = System::open(&faulty).unwrap();
    assert_eq!((system.check_extension(7), system.api_version()), (Ok(0), Ok(12)));

    let faulty = plan(When::Every("KVM_GET_ONE_REG".to_owned()), Fault::Alter { at: 3, mask: 0xff });
    let said = ask(&faulty).unwrap();
    assert!(said.contains("[17, 17, 17, 238, 17, 17, 17, 17]"), "{said}");

    let faulty = plan(When::Nth(0), Fault::Delay(Duration::from_millis(20)));
    let start = Instant::now();
    System::open(&faulty).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn random_failures_are_the_same_for_the_same_seed() {
    let spoiled = |seed| {
        let faulty = plan(When::Random { permille: 300, seed }, Fault::Fail(Errno::EINTR));
        let _ = ask(&faulty);
        for cap in 0..100 {
            let _ = faulty.call(Handle(0), &KVM_CHECK_EXTENSION, Arg::Int(cap));
        }
        faulty.spoiled()
    };
    assert_eq!(spoiled(1), spoiled(1));
    assert_ne!(spoiled(1), spoiled(2));
    assert!((10..60).contains(&spoiled(3).len()));
}
