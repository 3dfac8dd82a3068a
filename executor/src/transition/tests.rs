use proptest::prelude::*;

use super::*;
use crate::id::TaskId;
use crate::restart::RestartPolicy;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

fn fresh(restart: RestartPolicy) -> Status {
    Status::new(TaskId::random().unwrap(), at(0), restart, Some(64 << 20))
}

fn exited(code: i32) -> Event {
    Event::Exited { exit: Exit::Code(code), out_of_memory: false }
}

fn stop() -> Event {
    Event::StopRequested { signal: Signal::TERM, grace: Duration::from_secs(10) }
}

/// The states that a run of events leads through, and the last status.
fn run(restart: RestartPolicy, events: &[Event]) -> (Vec<TaskState>, Status) {
    let mut status = fresh(restart);
    let mut states = vec![status.state];
    for event in events {
        (status, _) = transition(status, event.clone(), at(1));
        states.push(status.state);
    }
    (states, status)
}

#[test]
fn a_task_that_ends_with_zero_finishes() {
    let (states, status) = run(RestartPolicy::No, &[Event::Prepared, Event::Started { pid: 5 }, exited(0)]);
    assert_eq!(states, [TaskState::Staging, TaskState::Starting, TaskState::Running, TaskState::Finished]);
    assert_eq!((status.shell_code(), status.pid), (0, None));
}

#[test]
fn an_exit_code_a_signal_and_want_of_memory_are_told_apart() {
    let start = [Event::Prepared, Event::Started { pid: 5 }];
    for (event, reason, code) in [
        (exited(3), Reason::CommandExited, 3),
        (Event::Exited { exit: Exit::Signal(11), out_of_memory: false }, Reason::CommandSignaled, 139),
        (Event::Exited { exit: Exit::Signal(9), out_of_memory: true }, Reason::MemoryLimit, 137),
    ] {
        let (_, status) = run(RestartPolicy::No, &[start.to_vec(), vec![event]].concat());
        assert_eq!(
            (status.state, status.reason, status.shell_code()),
            (TaskState::Failed, Some(reason), code)
        );
        assert_eq!(status.limitation.is_some(), reason == Reason::MemoryLimit);
    }
}

#[test]
fn a_stopped_task_is_killed_whatever_its_exit_code_and_is_not_restarted() {
    let events = [Event::Prepared, Event::Started { pid: 5 }, stop(), exited(0)];
    let (_, status) = run(RestartPolicy::Always, &events);
    assert_eq!((status.state, status.reason), (TaskState::Killed, Some(Reason::KillRequested)));
}

#[test]
fn a_signal_that_a_task_survives_does_not_make_its_later_end_a_kill() {
    let hup = Event::SignalRequested { signal: Signal::parse("HUP").unwrap() };
    let (_, status) = run(RestartPolicy::No, &[Event::Prepared, Event::Started { pid: 5 }, hup, exited(0)]);
    assert_eq!(status.state, TaskState::Finished);
}

#[test]
fn a_failed_start_says_why_in_the_exit_code() {
    for (reason, code) in
        [(Reason::CommandNotFound, 127), (Reason::CommandNotExecutable, 126), (Reason::IsolationFailed, 125)]
    {
        let failed = Event::StartFailed { reason, message: String::new() };
        let (_, status) = run(RestartPolicy::Always, &[Event::Prepared, failed]);
        assert_eq!((status.state, status.shell_code()), (TaskState::Failed, code));
    }
}

#[test]
fn restarts_are_counted_and_end_where_the_policy_says() {
    let round = [Event::Started { pid: 5 }, exited(1), Event::RestartDue];
    let events = [vec![Event::Prepared], round.to_vec(), round.to_vec(), round.to_vec()].concat();
    let (_, status) = run(RestartPolicy::OnFailure(Some(2)), &events);
    assert_eq!((status.state, status.restarts), (TaskState::Failed, 2));
}

#[test]
fn a_stop_during_the_pause_before_a_restart_takes_effect_at_once() {
    let events = [Event::Prepared, Event::Started { pid: 5 }, exited(1), stop(), Event::RestartDue];
    let (_, status) = run(RestartPolicy::Always, &events);
    assert_eq!((status.state, status.restarts), (TaskState::Killed, 0));
}

#[test]
fn a_stop_while_the_container_is_made_is_carried_out_when_it_runs() {
    let (status, _) = transition(fresh(RestartPolicy::No), Event::Prepared, at(1));
    let (status, actions) = transition(status, stop(), at(1));
    assert_eq!(actions, []);
    let (_, actions) = transition(status, Event::Started { pid: 5 }, at(2));
    assert!(actions.contains(&Action::Signal(Signal::TERM)));
}

#[test]
fn a_second_stop_with_a_shorter_grace_takes_effect() {
    let (_, status) = run(RestartPolicy::No, &[Event::Prepared, Event::Started { pid: 5 }, stop()]);
    let hurry = Event::StopRequested { signal: Signal::TERM, grace: Duration::ZERO };
    let (_, actions) = transition(status, hurry, at(2));
    assert!(actions.contains(&Action::ArmGrace(Duration::ZERO)));
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Prepared),
        1 => Just(Event::PrepareFailed { reason: Reason::ImageUnavailable, message: "no".into() }),
        3 => (1..9i32).prop_map(|pid| Event::Started { pid }),
        1 => Just(Event::StartFailed { reason: Reason::CommandNotFound, message: "no".into() }),
        3 => (0..3i32, any::<bool>()).prop_map(|(code, out_of_memory)| Event::Exited {
            exit: if code == 2 { Exit::Signal(15) } else { Exit::Code(code) },
            out_of_memory,
        }),
        1 => prop_oneof![Just(Signal::TERM), Just(Signal::KILL), Just(Signal::INT)]
            .prop_map(|signal| Event::SignalRequested { signal }),
        1 => (0..3u64).prop_map(|grace| Event::StopRequested {
            signal: Signal::TERM,
            grace: Duration::from_secs(grace),
        }),
        1 => Just(Event::GraceOver),
        2 => Just(Event::RestartDue),
        1 => Just(Event::OwnerLost { reason: Reason::SupervisorLost }),
    ]
}

fn any_policy() -> impl Strategy<Value = RestartPolicy> {
    prop_oneof![
        Just(RestartPolicy::No),
        Just(RestartPolicy::OnFailure(Some(1))),
        Just(RestartPolicy::OnFailure(None)),
        Just(RestartPolicy::Always),
    ]
}

proptest! {
    #[test]
    fn a_final_status_never_changes_again(
        policy in any_policy(), events in prop::collection::vec(any_event(), 0..30), last in any_event(),
    ) {
        let (_, status) = run(policy, &events);
        if status.state.is_final() {
            let (after, actions) = transition(status.clone(), last, at(9));
            prop_assert_eq!(after, status);
            prop_assert!(actions.is_empty());
        }
    }

    #[test]
    fn an_event_delivered_twice_changes_nothing_more(
        policy in any_policy(), events in prop::collection::vec(any_event(), 0..30), last in any_event(),
    ) {
        let (_, before) = run(policy, &events);
        let (once, _) = transition(before, last.clone(), at(2));
        let (twice, actions) = transition(once.clone(), last, at(2));
        prop_assert_eq!(twice, once);
        prop_assert!(!actions.contains(&Action::Launch) && !actions.contains(&Action::Release));
    }

    /// A model of the world: Launch makes a process, an exit or Release ends it.
    #[test]
    fn every_launched_process_ends_or_is_released(
        policy in any_policy(), events in prop::collection::vec(any_event(), 0..60),
    ) {
        let mut status = fresh(policy);
        let (mut launched, mut released) = (false, 0);
        for event in events {
            // What cannot happen in the world does not happen in the model.
            let possible = match event {
                Event::Started { .. } | Event::StartFailed { .. } | Event::Exited { .. } => launched,
                _ => true,
            };
            if !possible {
                continue;
            }
            let exits = matches!(event, Event::Exited { .. });
            let (next, actions) = transition(status, event, at(3));
            status = next;
            launched &= !exits;
            for action in actions {
                match action {
                    Action::Launch => {
                        prop_assert!(!launched, "launched while the process before still runs");
                        launched = true;
                    }
                    Action::Release => {
                        released += 1;
                        launched = false;
                    }
                    Action::Signal(_) | Action::KillAll => prop_assert!(launched || status.state != TaskState::Running),
                    _ => {}
                }
            }
        }
        prop_assert_eq!(released, usize::from(status.state.is_final()));
        if status.state.is_final() {
            prop_assert!(!launched);
        }
    }
}
