//! From submit to answer over the real binaries, on both queue backends.

use std::{process::Command, time::Duration};

use codering_tests::{Backend, Dev, fixture, repository, run};

const JOB: Duration = Duration::from_secs(240);

fn wordcount_gives_the_answer_of_one_process(backend: Backend) {
    let dev = Dev::start(backend, 1);
    let job = dev.submit(&fixture::example("wordcount"));
    dev.succeeded(&job, JOB);
    let answer: serde_json::Value = serde_json::from_slice(&dev.answer(&job)).unwrap();
    assert_eq!(answer, fixture::wordcount_expected());
    let results = dev.results(&job);
    assert_eq!(results.len(), 24);
    for result in &results {
        assert_eq!(result["outcome"], "succeeded", "{result}");
        assert_eq!(result["commit"], results[0]["commit"], "all tasks run the same commit");
    }
    dev.stop();
}

#[test]
fn wordcount_gives_the_answer_of_one_process_on_the_embedded_queue() {
    wordcount_gives_the_answer_of_one_process(Backend::Embedded);
}

#[test]
fn wordcount_gives_the_answer_of_one_process_on_rabbitmq() {
    wordcount_gives_the_answer_of_one_process(Backend::RabbitMq);
}

#[test]
fn two_hundred_tasks_give_the_same_answer_on_one_worker_and_on_four() {
    let answers = [1, 4].map(|workers| {
        let dev = Dev::start(Backend::Embedded, workers);
        let job = dev.submit(&fixture::squares(dev.directory(), 200, 0.0));
        dev.succeeded(&job, JOB);
        let answer: serde_json::Value = serde_json::from_slice(&dev.answer(&job)).unwrap();
        let results = dev.results(&job);
        let mut ran_on: Vec<_> = results.iter().map(|result| result["worker"].to_string()).collect();
        ran_on.sort();
        ran_on.dedup();
        assert_eq!(ran_on.len(), workers as usize, "every worker had a share: {ran_on:?}");
        dev.stop();
        answer
    });
    assert_eq!(answers[0], fixture::squares_expected(200));
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn binary_tiles_become_the_picture_that_one_process_renders() {
    let dev = Dev::start(Backend::Embedded, 1);
    let job = dev.submit(&fixture::example("mandelbrot"));
    dev.succeeded(&job, JOB);
    let picture = dev.directory().join("mandelbrot.png");
    std::fs::write(&picture, dev.answer(&job)).unwrap();
    let check = repository().join("examples/mandelbrot/check.py");
    let ran = run(Command::new("python3").arg(check).arg(&picture), Duration::from_secs(60));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    dev.stop();
}

#[test]
fn twenty_seeds_on_two_workers_give_the_recorded_value_of_pi() {
    let dev = Dev::start(Backend::RabbitMq, 2);
    let job = dev.submit(&fixture::example("pi"));
    dev.succeeded(&job, JOB);
    let answer: serde_json::Value = serde_json::from_slice(&dev.answer(&job)).unwrap();
    let recorded = std::fs::read(fixture::example("pi").join("expected.json")).unwrap();
    assert_eq!(answer, serde_json::from_slice::<serde_json::Value>(&recorded).unwrap());
    dev.stop();
}
