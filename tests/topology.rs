//! Several GPUs: the best connected set; and the CPU cores near them.
#![cfg(feature = "cli")]

mod common;

use common::{Machine, run};
use serde_json::{Value, json};

fn link(a: u32, b: u32, nvlinks: u32, ancestor: &str) -> Value {
    json!({"gpus": [a, b], "nvlinks": nvlinks, "ancestor": ancestor})
}

/// Eight GPUs, four on each socket; NVLink bridges join 0-1, 2-3 and 4-5.
fn bridged() -> Machine {
    let machine = Machine::gpus(8);
    let links: Vec<Value> = (0..8)
        .flat_map(|b| (0..b).map(move |a| (a, b)))
        .map(|(a, b)| {
            let bridge = [(0, 1), (2, 3), (4, 5)].contains(&(a, b));
            let ancestor = if a / 4 != b / 4 {
                "system"
            } else if a / 2 == b / 2 {
                "single"
            } else {
                "node"
            };
            link(a, b, if bridge { 4 } else { 0 }, ancestor)
        })
        .collect();
    machine.set("/links", Value::Array(links));
    machine
}

fn chosen(machine: &Machine, args: &[&str]) -> String {
    run(machine.autocvd().args(["-o", "--no-claim"]).args(args))
        .success()
        .trim()
        .to_owned()
}

/// The same by a launch that is told of links by earlier ones.
fn chosen_and_claimed(machine: &Machine, args: &[&str]) -> String {
    run(machine.autocvd().args(["-o", "--hold", "0"]).args(args))
        .success()
        .trim()
        .to_owned()
}

#[test]
fn nvlink_goes_before_the_higher_index_and_the_nearest_ancestor_before_a_far_one() {
    let machine = bridged();
    assert_eq!(chosen(&machine, &["-n", "1"]), "7");
    assert_eq!(
        chosen(&machine, &["-n", "2"]),
        "4,5",
        "the highest pair with NVLink"
    );
    assert_eq!(
        chosen(&machine, &["-n", "2", "-x", "4"]),
        "2,3",
        "the next pair with NVLink"
    );
    assert_eq!(
        chosen(&machine, &["-n", "2", "--only", "0", "2", "4", "6", "7"]),
        "6,7",
        "the same switch"
    );
    assert_eq!(
        chosen(&machine, &["-n", "2", "--only", "0", "2", "4"]),
        "0,2",
        "the same socket"
    );
    assert_eq!(
        chosen(&machine, &["-n", "4"]),
        "0,1,2,3",
        "two bridges on one socket"
    );
    assert_eq!(chosen(&machine, &["-n", "8"]), "0,1,2,3,4,5,6,7");
}

#[test]
fn only_free_gpus_make_a_set() {
    let machine = bridged();
    let _job = machine.job(5);
    assert_eq!(chosen(&machine, &["-n", "2"]), "2,3");
}

#[test]
fn gpus_joined_by_nvswitch_alone_are_alike_and_the_highest_go_first() {
    let machine = Machine::gpus(4);
    let links: Vec<Value> = (0..4)
        .flat_map(|b| (0..b).map(move |a| (a, b)))
        .map(|(a, b)| link(a, b, 0, "node"))
        .collect();
    machine.set("/links", Value::Array(links));
    for gpu in 0..4 {
        machine.set(&format!("/gpus/{gpu}/nvswitch_links"), json!(18));
    }
    assert_eq!(chosen(&machine, &["-n", "3"]), "1,2,3");
}

#[test]
fn a_driver_that_tells_nothing_of_links_leaves_the_highest() {
    let machine = Machine::gpus(4);
    machine.without(&[
        "nvmlDeviceGetTopologyCommonAncestor",
        "nvmlDeviceGetP2PStatus",
        "nvmlDeviceGetNvLinkState",
    ]);
    assert_eq!(chosen(&machine, &["-n", "2"]), "2,3");
}

#[test]
fn links_are_asked_for_only_where_there_is_a_choice() {
    let machine = bridged();
    machine.forget_calls();
    chosen(&machine, &["-n", "1"]);
    chosen(&machine, &["-n", "8"]);
    chosen(&machine, &["-l", "-n", "2"]);
    let asked = |machine: &Machine| {
        machine
            .calls()
            .iter()
            .any(|call| call.contains("Topology") || call.contains("NvLink"))
    };
    assert!(!asked(&machine));
    chosen(&machine, &["-n", "2"]);
    assert!(asked(&machine));
}

#[test]
fn verbose_says_what_was_weighed() {
    let outcome = run(bridged().autocvd().args(["-n", "2", "-vv", "-o"]));
    outcome.tells("the best connected set goes first");
    outcome.tells("GPU 4 and GPU 5: 4 NVLinks");
}

#[test]
fn a_bound_command_runs_on_the_cores_near_its_gpus_alone() {
    let machine = Machine::gpus(2);
    machine.set("/gpus/1/cpu_affinity", json!([0]));
    let bound = run(machine.autocvd().args([
        "--bind",
        "--",
        "grep",
        "Cpus_allowed_list",
        "/proc/self/status",
    ]))
    .success();
    assert_eq!(bound.split_whitespace().last(), Some("0"), "{bound}");
}

#[test]
fn binding_where_nothing_is_known_of_cores_costs_a_warning_not_the_job() {
    let machine = Machine::gpus(1);
    let outcome = run(machine.autocvd().args(["--bind", "--", "echo", "ran"]));
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "ran\n"),
        "{outcome:?}"
    );
    assert!(
        outcome.stderr.contains("--bind") && outcome.stderr.contains("unbound"),
        "{outcome:?}"
    );
    let outcome = run(machine
        .autocvd()
        .args(["-q", "--bind", "--", "echo", "ran"]));
    assert_eq!(
        (outcome.code, outcome.stderr.as_str()),
        (Some(0), ""),
        "{outcome:?}"
    );
    let outcome = run(machine.autocvd().arg("--bind"));
    assert_eq!(outcome.code, Some(2), "--bind without COMMAND: {outcome:?}");
}

/// Eight GPUs whose links all lead to switches, as in an HGX board.
fn switched() -> Machine {
    let machine = Machine::gpus(8);
    let pairs = (0..8).flat_map(|b| (0..b).map(move |a| link(a, b, 0, "node")));
    machine.set("/links", Value::Array(pairs.collect()));
    for gpu in 0..8 {
        machine.set(&format!("/gpus/{gpu}/nvswitch_links"), json!(18));
    }
    machine
}

#[test]
fn a_switch_ends_the_questions_about_the_links_of_a_gpu() {
    let machine = switched();
    machine.forget_calls();
    assert_eq!(chosen(&machine, &["-n", "2"]), "6,7");
    let calls = machine.calls();
    let about = |name: &str| calls.iter().filter(|call| call.contains(name)).count();
    assert_eq!(
        (about("NvLinkState"), about("NvLinkRemotePciInfo")),
        (8, 8),
        "{calls:?}"
    );
}

#[test]
fn status_asks_for_the_links_that_it_shows_alone() {
    let machine = switched();
    for (args, asks) in [(&["status"][..], false), (&["status", "--json"], true)] {
        machine.forget_calls();
        run(machine.autocvd().args(args)).success();
        let asked = machine.calls().iter().any(|call| call.contains("NvLink"));
        assert_eq!(asked, asks, "{args:?}");
    }
}

#[test]
fn other_launches_do_not_wait_while_links_are_asked_for() {
    let machine = switched();
    machine.set("/delays_ms/nvmlDeviceGetP2PStatus", json!(500));
    // It takes 14 s to ask for all of them.
    let slow = common::start(machine.autocvd().args(["-o", "-n", "2", "--", "true"]));
    let asks = || {
        machine
            .calls()
            .iter()
            .any(|call| call == "nvmlDeviceGetP2PStatus")
    };
    common::wait_until("links are asked for", asks);
    let quick = run(machine.autocvd().args(["-q", "--only", "0", "--", "true"]));
    assert_eq!(quick.code, Some(0), "{quick:?}");
    let mut slow = slow;
    assert!(slow.is_running(), "it asks for links still");
}

/// The calls about links that a launch of two GPUs makes, which it is given.
fn asked_for_links(machine: &Machine, given: &str) -> usize {
    machine.forget_calls();
    let job = ["-q", "-n", "2", "--", "printenv", "CUDA_VISIBLE_DEVICES"];
    let outcome = run(machine.autocvd().args(job));
    assert_eq!(outcome.success(), format!("{given}\n"));
    common::wait_until("its GPUs are free again", || {
        let short = run(machine.autocvd().args(["status", "--short"]));
        short.stdout.starts_with("8/8 free")
    });
    let calls = machine.calls();
    let about = ["NvLink", "P2PStatus", "TopologyCommonAncestor"];
    let is_asked = |call: &&String| about.iter().any(|name| call.contains(name));
    calls.iter().filter(is_asked).count()
}

#[test]
fn links_are_asked_for_once_and_not_by_the_next_launch() {
    for (machine, given) in [(switched(), "6,7"), (bridged(), "4,5")] {
        assert!(asked_for_links(&machine, given) > 28);
        assert_eq!(asked_for_links(&machine, given), 0);
        // Another driver may see other links.
        machine.set("/driver_version", json!("590.44.01"));
        assert!(asked_for_links(&machine, given) > 28);
        assert_eq!(asked_for_links(&machine, given), 0);
    }
}

#[test]
fn a_launch_that_is_told_of_the_links_by_an_earlier_one_reads_each_gpu_once() {
    let machine = switched();
    asked_for_links(&machine, "6,7");
    machine.forget_calls();
    assert_eq!(chosen_and_claimed(&machine, &["-n", "2"]), "6,7");
    let calls = machine.calls();
    let read = |call: &&String| *call == "nvmlDeviceGetComputeMode";
    assert_eq!(calls.iter().filter(read).count(), 8, "{calls:?}");
}

#[test]
fn what_is_recorded_has_the_links_that_launches_know() {
    let is_about_links = |call: &String| call.contains("NvLink") || call.contains("Topology");
    let machine = bridged();
    let record = || run(machine.autocvd().args(["status", "--json"])).success();
    let links = |recorded: &str| {
        let recorded: Value = serde_json::from_str(recorded).expect("JSON");
        recorded["links"].clone()
    };
    let asked = links(&record());
    // The first one has asked for all that follow, launches and recordings.
    machine.forget_calls();
    assert_eq!(chosen_and_claimed(&machine, &["-n", "2"]), "4,5");
    assert_eq!(links(&record()), asked);
    let calls = machine.calls();
    assert!(!calls.iter().any(is_about_links), "{calls:?}");
    // Where the driver tells of none any more, both know what is kept.
    machine.set("/links", json!([]));
    assert_eq!(links(&record()), asked);
}

#[test]
fn links_that_others_may_have_written_are_not_believed() {
    use std::os::unix::fs::PermissionsExt;
    let machine = bridged();
    assert!(asked_for_links(&machine, "4,5") > 28);
    let user = rustix::process::geteuid().as_raw();
    let kept = machine.claims().join(format!("links-{user}"));
    let text = std::fs::read_to_string(&kept).expect("it was kept");
    // Believed, this would make the pair 2-3 the best one.
    let uuid = |gpu: u32| format!("GPU-{gpu}0000000-0000-0000-0000-00000000000{gpu}");
    let (one, other) = (uuid(2), uuid(3));
    let strong = text.replace(&format!("{one} {other} 4 "), &format!("{one} {other} 9 "));
    let strong = strong.replace(&format!("{other} {one} 4 "), &format!("{other} {one} 9 "));
    assert_ne!(text, strong);
    std::fs::write(&kept, &strong).expect("our own file");
    assert_eq!(asked_for_links(&machine, "2,3"), 0, "its own user's is");
    let mode = |mode| PermissionsExt::from_mode(mode);
    std::fs::set_permissions(&kept, mode(0o666)).expect("our own file");
    assert!(asked_for_links(&machine, "4,5") > 28);
    if user == 0 {
        std::fs::write(&kept, &strong).expect("our own file");
        std::os::unix::fs::chown(&kept, Some(65_534), None).expect("root may");
        assert!(asked_for_links(&machine, "4,5") > 28);
    }
    for junk in ["", "junk\n", "\0\0\0"] {
        std::fs::write(&kept, junk).expect("our own file");
        assert!(asked_for_links(&machine, "4,5") > 28, "{junk:?}");
    }
}
