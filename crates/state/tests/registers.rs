//! Every way in which a register is kept or not, on a made-up KVM.

mod common;

use common::*;
use evenkeel_state::registers::{
    Became, Error, Loaded, Moment, Shape, Value, VcpuRegisters, gic_revisions, load, load_all, save,
};
use evenkeel_surface::Hex64;
use evenkeel_sys::{Backend, Errno, Fault, Faulty, Rule, When};

fn saved_on(host: &Fake) -> VcpuRegisters {
    save(host, &[Shape::Pmu], false).unwrap().vcpus.remove(0)
}

fn became(loaded: &Loaded) -> Vec<(u64, Became)> {
    loaded.not_kept.iter().map(|n| (n.id.0, n.became)).collect()
}

#[test]
fn a_host_takes_its_own_registers_back() {
    let host = Fake::plain();
    let saved = saved_on(&host);
    assert_eq!(saved.registers.len(), 8);
    let wide = saved.registers.iter().find(|r| r.id.0 == VECTOR).unwrap();
    assert_eq!(wide.value, Some(Value::from(0xabcd)));
    let loaded = load(&host, &saved).unwrap();
    assert_eq!((loaded.kept, loaded.running), (7, 1));
    assert_eq!((became(&loaded), loaded.overwritten.len(), loaded.unsaved.len()), (vec![], 0, 0));
}

#[test]
fn what_is_not_kept_is_named_with_its_reason() {
    let saved = saved_on(&Fake::plain());
    let other = Fake::new(&[
        (SCTLR, How::Refuses, 1),
        (TCR, How::Masks(3), 0),
        (PFR0, How::Decides, 0x11),
        (SET, How::Hides, 0x1e),
        (FPMR, How::Stores, 3),
        (COUNTER, How::Masks(1), 0),
        (VECTOR, How::Stores, 0),
        (CLEAR, How::Stores, 0),
    ]);
    let loaded = load(&other, &saved).unwrap();
    assert_eq!(
        became(&loaded),
        [
            (PSCI, Became::Unlisted),
            (SCTLR, Became::Refused),
            (TCR, Became::Altered),
            (SET, Became::Unreadable),
            (COUNTER, Became::Altered),
        ]
    );
    assert_eq!(loaded.unsaved, [Hex64(CLEAR)]);
    let of = |id: u64| loaded.not_kept.iter().find(|n| n.id.0 == id).unwrap();
    assert_eq!(of(PSCI).errno.as_deref(), Some("ENOENT"));
    assert_eq!(of(SCTLR).errno.as_deref(), Some("EINVAL"));
    assert_eq!((&of(TCR).saved, &of(TCR).now), (&Some(Value::from(7)), &Some(Value::from(3))));
    assert_eq!(loaded.kept, 3);
}

#[test]
fn a_register_that_could_not_be_read_is_saved_as_such() {
    let saved = saved_on(&Fake::new(&[(SCTLR, How::Hides, 0), (TCR, How::Stores, 1)]));
    assert_eq!(saved.registers[0].unread.as_deref(), Some("EINVAL"));
    let loaded = load(&Fake::plain(), &saved).unwrap();
    assert_eq!(became(&loaded), [(SCTLR, Became::NotSaved)]);
}

#[test]
fn setting_one_register_can_undo_another_and_that_is_seen() {
    let host = Fake::new(&[(SET, How::Stores, 0x1e), (CLEAR, How::Clears(SET), 0)]);
    let loaded = load(&host, &saved_on(&host)).unwrap();
    assert_eq!(loaded.overwritten.len(), 1, "kept when it was set, gone at the end");
    assert_eq!((loaded.overwritten[0].id.0, &loaded.overwritten[0].now), (SET, &Value::from(0)));
    assert_eq!(became(&loaded), [(CLEAR, Became::Altered)]);

    // The other way round the alias is wrong at first and right at the end.
    let later = 0x6030_0000_0013_dcf3;
    let alias = 0x6030_0000_0013_dce3;
    let host = Fake::new(&[(alias, How::Clears(later), 0), (later, How::Stores, 0x1e)]);
    let loaded = load(&host, &saved_on(&host)).unwrap();
    assert_eq!((loaded.settled, loaded.kept, loaded.not_kept.len()), (vec![Hex64(alias)], 2, 0));
}

#[test]
fn id_registers_come_first_and_the_list_is_read_again() {
    // FPMR is listed before PFR0 says that there is one.
    let mut saved = saved_on(&Fake::plain());
    saved.registers.sort_by_key(|r| r.id.0 != FPMR);
    let off = Fake::new(&[(FPMR, How::Stores, 0), (PFR0, How::Decides, 0), (TCR, How::Stores, 0)]);
    let loaded = load(&off, &saved).unwrap();
    assert!(!became(&loaded).iter().any(|(id, _)| *id == FPMR), "PFR0 was set before it");

    let pfr0 = saved.registers.iter_mut().find(|r| r.id.0 == PFR0).unwrap();
    pfr0.value = Some(Value::from(0));
    let loaded = load(&Fake::plain(), &saved).unwrap();
    assert_eq!(became(&loaded), [(FPMR, Became::Unlisted)], "it was listed before PFR0 was set");
}

#[test]
fn a_filled_vcpu_differs_and_is_marked() {
    let file = save(&Fake::plain(), &[Shape::Min], true).unwrap();
    let [plain, filled] = &file.vcpus[..] else { panic!("{} vCPUs", file.vcpus.len()) };
    assert!(!plain.filled && filled.filled);
    let value =
        |vcpu: &VcpuRegisters, id: u64| vcpu.registers.iter().find(|r| r.id.0 == id).unwrap().value.clone();
    for id in [SCTLR, TCR, SET, FPMR, VECTOR] {
        assert_ne!(value(plain, id), value(filled, id), "{id:#x}");
    }
    for id in [PFR0, PSCI] {
        assert_eq!(value(plain, id), value(filled, id), "{id:#x} is not to be filled");
    }
}

#[test]
fn a_revision_that_is_accepted_and_ignored_is_seen() {
    let revisions = gic_revisions(&Fake::plain()).unwrap();
    assert_eq!(revisions.attempts.len(), 6);
    let ignored = revisions.attempts.iter().filter(|a| a.ignored());
    let ignored: Vec<_> = ignored.map(|a| (a.when, a.revision)).collect();
    let both = [Moment::BeforeInit, Moment::AfterInit];
    assert_eq!(ignored, both.map(|when| [(when, 1), (when, 2)]).concat());
}

/// A backend that counts nothing and spoils one call.
fn spoiled(n: usize) -> Faulty<Fake> {
    Faulty::new(Fake::plain(), vec![Rule { when: When::Nth(n), fault: Fault::Fail(Errno::EIO) }])
}

#[test]
fn every_call_that_fails_is_told() {
    let whole = save(&Fake::plain(), &[Shape::Full], false).unwrap();
    let files = [("a.json".to_owned(), whole.clone())];
    let report = load_all(&Fake::plain(), &files).unwrap();
    let (mut told, mut calls) = (0, 0);
    for n in 0.. {
        let backend = spoiled(n);
        let same = match save(&backend as &dyn Backend, &[Shape::Full], false) {
            Err(Error::Call { .. }) => false,
            Err(other) => panic!("{other}"),
            Ok(file) => file == whole,
        };
        if backend.spoiled().is_empty() {
            break;
        }
        assert!(!same, "call {n} failed, and nothing tells");
        told += 1;
    }
    for n in 0.. {
        let backend = spoiled(n);
        let same = load_all(&backend, &files).is_ok_and(|other| other == report);
        if backend.spoiled().is_empty() {
            break;
        }
        calls += 1;
        assert!(!same, "call {n} ({:?}) failed, and nothing tells", backend.spoiled());
    }
    assert!(told > 15 && calls > 100, "{told}, {calls}");
}
