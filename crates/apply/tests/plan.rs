//! What is planned, in which order, and what is refused before anything is touched.

mod model;

use evenkeel_apply::{Plan, PlanError, Setup, Verdict, scratch};
use evenkeel_contract::Coord;
use evenkeel_contract::contract::Promise;
use evenkeel_steps::{Set, Stage};
use evenkeel_surface::Arch;
use model::{Model, contract, everything_selected, host, plan};

fn names(plan: &Plan, stage: Stage) -> Vec<&'static str> {
    plan.steps(stage, 0, 5).iter().map(|s| s.name).collect()
}

#[test]
fn the_order_follows_the_edges() {
    let new = host("debian-7.3");
    let plan = plan(&everything_selected(&contract(&[&new], "split"), &new), &new, 1);
    let vm = names(&plan, Stage::Vm);
    let place = |name: &str| vm.iter().position(|n| *n == name).unwrap_or_else(|| panic!("{name}: {vm:?}"));
    assert!(place("disable-quirks") < place("irqchip") && place("irqchip") < place("x2apic-api"));
    let vcpu = names(&plan, Stage::Vcpu);
    let place =
        |name: &str| vcpu.iter().position(|n| *n == name).unwrap_or_else(|| panic!("{name}: {vcpu:?}"));
    assert!(place("enforce-pv-cpuid") < place("cpuid") && place("cpuid") < place("feature-msrs"));
    assert_eq!(vcpu.last(), Some(&"look"));
    // All quirks go into one mask.
    let steps = plan.steps(Stage::Vm, 0, 5);
    let quirks = steps.iter().find(|s| s.name == "disable-quirks").unwrap();
    assert_eq!(quirks.set.len(), 1);
    assert!(
        matches!(quirks.set[0], Set::EnableCap { cap: 213, args } if args[0].count_ones() >= 8),
        "{quirks:?}"
    );
    // What nothing reads back is told as such, and the rest is not.
    let unseen: Vec<&str> = steps.iter().flat_map(|s| &s.unseen).map(|u| u.facet.as_str()).collect();
    assert!(
        unseen.contains(&"x86.quirk.slot-zap-all") && unseen.contains(&"x86.disable-exits.hlt"),
        "{unseen:?}"
    );
    assert!(!unseen.contains(&"x86.exception-payload"), "{unseen:?}");
    let duties: Vec<&str> = plan.duties.iter().map(|d| d.name.as_str()).collect();
    assert!(duties.contains(&"filter-msrs") && duties.contains(&"answer-msrs"), "{duties:?}");
}

#[test]
fn a_kernel_without_the_newer_capability_gets_the_older_one() {
    let old = host("debian-5.10");
    let mut contract = contract(&[&old], "kernel");
    let lint0 = evenkeel_catalog::CHOICES.iter().position(|c| c.name == "x86.quirk.lint0-reenabled").unwrap();
    let off = evenkeel_catalog::CHOICES[lint0].values.iter().position(|v| v.name == "off").unwrap();
    contract.choices.retain(|c| usize::from(c.0) != lint0);
    contract.choices.push((lint0 as u16, off as u8));
    contract.choices.sort_unstable();
    let plan = plan(&contract, &old, 1);
    let steps = plan.steps(Stage::Vm, 0, 5);
    let quirks = steps.iter().find(|s| s.name == "disable-quirks").unwrap();
    assert_eq!(quirks.set, [Set::EnableCap { cap: 116, args: [1, 0, 0, 0] }]);
}

#[test]
fn arm64_revisions_are_set_before_and_after_the_controller_is_initialized() {
    let (old, new) = (host("debian-5.10-arm64"), host("debian-7.3-arm64"));
    let plan = plan(&contract(&[&old, &new], "pmu"), &new, 1);
    assert_eq!(names(&plan, Stage::Gic), ["vgic-iidr-early", "gic-init", "vgic-iidr", "look"]);
    let vcpu = names(&plan, Stage::Vcpu);
    assert_eq!(vcpu, ["vcpu-init", "id-registers", "firmware-registers", "psci-version", "look"]);
    assert_eq!(names(&plan, Stage::Late), ["pmu-init"]);
}

#[test]
fn what_the_host_cannot_give_is_refused_before_anything_is_touched() {
    let new = host("debian-7.3");
    let mut contract = contract(&[&new], "kernel");
    // No emulated EPYC has AVX-512.
    let at = Coord::parse("cpuid.7.0.ebx").unwrap();
    let i = contract.words.binary_search_by_key(&at, |w| w.at).unwrap();
    contract.words[i].value |= 1 << 16;
    let at = Coord::parse("msr.10a").unwrap();
    let promise = Promise { at, value: 1 << 26, open: 0 };
    match contract.words.binary_search_by_key(&at, |w| w.at) {
        Ok(i) => contract.words[i] = promise,
        Err(i) => contract.words.insert(i, promise),
    }
    let plan = plan(&contract, &new, 1);
    let avx = plan.refusals.iter().find(|r| r.facet == "cpuid.7.0.ebx.avx512f").unwrap();
    assert_eq!((avx.wanted.as_str(), avx.offered.as_str(), avx.code), ("0x1", "0x0", "facet-lost"));
    assert!(!avx.remedy.is_empty());
    // A kernel that takes it all the same is not believed before the facet is waived.
    let model = Model::of(&new.surface, "kernel");
    assert_eq!(scratch(&plan, &model).unwrap().applying.report().verdict, Verdict::Refused);
    let waived: Vec<String> = plan.refusals.iter().map(|r| r.facet.clone()).collect();
    let plan = plan.waive(&waived);
    let model = Model::of(&new.surface, "kernel");
    let report = scratch(&plan, &model).unwrap().applying.report();
    assert_eq!((report.verdict, report.usable), (Verdict::Waived, true));
}

#[test]
fn a_waiver_names_a_facet_or_a_word_and_nothing_else() {
    let new = host("debian-7.3");
    let mut contract = contract(&[&new], "kernel");
    let at = Coord::parse("cpuid.7.0.ebx").unwrap();
    let i = contract.words.binary_search_by_key(&at, |w| w.at).unwrap();
    contract.words[i].value |= 1 << 16 | 1 << 17;
    let waived = |by: &str| {
        let plan = plan(&contract, &new, 1).waive(&[by.to_owned()]);
        plan.refusals.iter().filter(|r| r.waived).count()
    };
    assert_eq!(waived("cpuid.7.0.ebx"), 2);
    assert_eq!(waived("cpuid.7.0.ebx.avx512f"), 1);
    assert_eq!(waived("cpuid.7.0.ebx.avx512"), 0);
    assert_eq!(waived(""), 0);
}

#[test]
fn what_a_vm_lacks_of_its_steps_makes_it_unusable() {
    let new = host("debian-7.3");
    let contract = contract(&[&new], "kernel");
    let plan = plan(&contract, &new, 2);
    let model = Model::of(&new.surface, "kernel");
    let system = evenkeel_sys::System::open(&model).unwrap();
    let vm = system.create_vm(0).unwrap();
    let mut applying = plan.start();
    assert_eq!(applying.report().verdict, Verdict::Incomplete);
    applying.vm(&vm).unwrap();
    let first = vm.create_vcpu(0).unwrap();
    applying.vcpu(&first, 0).unwrap();
    // One of two vCPUs is there.
    assert!(!applying.report().usable);
    let second = vm.create_vcpu(1).unwrap();
    applying.vcpu(&second, 1).unwrap();
    assert!(applying.report().usable);
    // After the first run something else is there than was read before.
    applying.reread(&second, 1).unwrap();
    let handle = second_handle(&model);
    model.state.lock().unwrap().cpuid.get_mut(&handle).unwrap()[8 + 40 + 12] ^= 1;
    let halt = applying.reread(&second, 1).unwrap_err();
    assert_eq!(halt.step, "cpuid", "{halt}");
    assert!(!applying.report().usable);
    // A reset sets it again.
    let mut again = plan.start();
    again.vm(&vm).unwrap();
    again.reset(&second, 1).unwrap();
}

fn second_handle(model: &Model) -> u32 {
    *model.state.lock().unwrap().cpuid.keys().last().unwrap()
}

#[test]
fn each_vcpu_gets_ids_of_its_own() {
    let new = host("debian-7.3");
    let plan = plan(&contract(&[&new], "kernel"), &new, 3);
    let ids: Vec<u32> =
        (0..3).map(|i| plan.table(i).iter().find(|e| e.function == 1).unwrap().output[1] >> 24).collect();
    assert_eq!(ids, [0, 1, 2]);
}

#[test]
fn a_contract_for_something_else_has_no_plan() {
    let (x86, arm) = (host("debian-7.3"), host("debian-7.3-arm64"));
    let c = contract(&[&x86], "kernel");
    let refused = Plan::new(&c, &arm.surface, Setup::default()).unwrap_err();
    assert_eq!(refused, PlanError::Architecture(Arch::X86_64, Arch::Aarch64));
    let odd = evenkeel_contract::Contract { shape: "odd".to_owned(), ..c };
    assert_eq!(
        Plan::new(&odd, &x86.surface, Setup::default()).unwrap_err(),
        PlanError::Shape("odd".to_owned())
    );
}
