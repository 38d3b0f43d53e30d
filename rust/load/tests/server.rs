//! Runs against a real server on a socket, which speaks as it is told.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use llm_node_load::{Plan, Report, run};
use serde_json::{Value, json};

/// What a request got: its number on the server, and its body.
type Answer = dyn Fn(usize, &Value, &mut TcpStream) -> std::io::Result<AfterAnswer> + Send + Sync;

#[derive(PartialEq)]
enum AfterAnswer {
    KeepAlive,
    Close,
}

struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

/// Serves until the test's process ends.
fn server(
    answer: impl Fn(usize, &Value, &mut TcpStream) -> std::io::Result<AfterAnswer> + Send + Sync + 'static,
) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let requests = Arc::new(AtomicUsize::new(0));
    let answer: Arc<Answer> = Arc::new(answer);
    let counted = Arc::clone(&connections);
    thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            let (answer, requests) = (Arc::clone(&answer), Arc::clone(&requests));
            thread::spawn(move || serve(stream.unwrap(), &requests, &*answer));
        }
    });
    Server { address, connections }
}

fn serve(mut stream: TcpStream, requests: &AtomicUsize, answer: &Answer) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut length = 0;
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|read| read > 0) && line != "\r\n" {
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        if length == 0 || reader.read_exact(&mut body).is_err() {
            return;
        }
        let body = serde_json::from_slice(&body).unwrap();
        let number = requests.fetch_add(1, Ordering::SeqCst);
        // A client that has left is part of some tests.
        if !answer(number, &body, &mut stream).is_ok_and(|after| after == AfterAnswer::KeepAlive) {
            return;
        }
    }
}

const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(data: &str) -> Vec<u8> {
    let event = format!("data: {data}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

fn text(words: &str) -> Vec<u8> {
    chunk(&format!(r#"{{"choices": [{{"text": {words:?}, "finish_reason": null}}]}}"#))
}

/// Two tokens in each event, then the counts and the end.
fn pairs(body: &Value) -> Vec<u8> {
    let tokens = body["n"].as_u64().unwrap();
    let mut stream = HEAD.to_vec();
    for _ in 0..tokens / 2 {
        stream.extend(text("two words"));
    }
    let usage = json!({"prompt_tokens": body["p"].as_array().unwrap().len(), "completion_tokens": tokens,
                       "prompt_tokens_details": {"cached_tokens": 3}});
    stream.extend(chunk(&json!({"choices": [{"text": "", "finish_reason": "length"}]}).to_string()));
    stream.extend(chunk(&json!({"choices": [], "usage": usage}).to_string()));
    stream.extend(chunk("[DONE]"));
    stream.extend(b"0\r\n\r\n");
    stream
}

fn plan(address: SocketAddr, changes: &Value) -> Plan {
    let mut plan = json!({
        "address": address, "host": "test", "path": "/v1/completions", "per_request": true,
        "body": [{"text": "{\"p\":"}, "prompt", {"text": ",\"n\":"}, "output_tokens", {"text": "}"}],
        "prompts": {"ids": {"low": 3, "high": 500}}, "prompt_tokens": 16, "seed": 1, "output_tokens": 20,
        "arrivals": {"closed": {"concurrency": 4}}, "limit": {"requests": 12},
    });
    for (key, value) in changes.as_object().unwrap() {
        plan[key] = value.clone();
    }
    Plan::parse(&plan.to_string()).unwrap()
}

fn report(address: SocketAddr, changes: &Value) -> Report {
    let mut last = None;
    let report = run(&plan(address, changes), &mut |progress| {
        last = Some(progress);
        ControlFlow::Continue(())
    })
    .unwrap();
    let last = last.unwrap();
    assert_eq!((last.completed, last.failed), (report.completed, report.failed));
    report
}

#[test]
fn a_closed_loop_counts_tokens_and_events_and_keeps_its_connections() {
    let server = server(|_, body, stream| {
        // Pieces that end anywhere.
        for piece in pairs(body).chunks(7) {
            stream.write_all(piece)?;
        }
        Ok(AfterAnswer::KeepAlive)
    });
    let report = report(server.address, &json!({"ttft_goal_ms": 60_000.0}));
    assert_eq!((report.requests, report.completed, report.failed), (12, 12, 0));
    assert_eq!((report.prompt_tokens, report.cached_tokens), (12 * 16, 12 * 3));
    assert_eq!((report.output_tokens, report.events), (12 * 20, 12 * 10));
    assert_eq!(report.tokens_per_event, Some(2.0));
    assert_eq!(report.goodput, Some(1.0));
    assert_eq!(server.connections.load(Ordering::SeqCst), 4);
    assert!(report.wall_s > 0.0);
    let rate = report.output_tokens as f64 / report.wall_s;
    assert!((report.output_tokens_per_s / rate - 1.0).abs() < 1e-9);
    let requests = report.per_request.unwrap();
    assert_eq!(requests.len(), 12);
    for request in requests {
        assert_eq!((request.tokens, request.events, request.prompt_tokens), (20, 10, 16));
        assert!(request.ttft_ms.unwrap() / 1e3 <= request.end_s - request.start_s);
    }
}

#[test]
fn times_are_the_servers_own() {
    let server = server(|_, _, stream| {
        stream.write_all(HEAD)?;
        for wait in [60, 30, 30] {
            thread::sleep(Duration::from_millis(wait));
            stream.write_all(&text("word"))?;
        }
        stream.write_all(&[chunk("[DONE]"), b"0\r\n\r\n".to_vec()].concat())?;
        Ok(AfterAnswer::KeepAlive)
    });
    let changes = json!({"arrivals": {"burst": {"concurrency": 2}}, "limit": {"requests": 4}});
    let report = report(server.address, &changes);
    // The server sleeps at least so long; nothing is said of the upper end, where the machine decides. An
    // event that is read late makes one gap longer and the next shorter, so only sums are sure.
    let mean = |summary: &llm_node_load::Summary| summary.mean.unwrap();
    assert!(report.ttft_ms.p50.unwrap() >= 60.0);
    assert!(report.e2e_ms.p50.unwrap() >= 120.0);
    assert!(mean(&report.ttft_ms) + 2.0 * mean(&report.itl_ms) >= 119.9);
    assert!((mean(&report.itl_ms) / mean(&report.tpot_ms) - 1.0).abs() < 1e-3);
    // Without the server's count, an event is a token.
    assert_eq!((report.completed, report.output_tokens, report.events), (4, 12, 12));
    // The second round waits for the first.
    let requests = report.per_request.unwrap();
    assert!(requests[2].start_s >= requests[0].end_s.max(requests[1].end_s));
}

#[test]
fn every_way_to_fail_is_told() {
    let server = server(|number, body, stream| match number {
        0 => {
            let body = r#"{"error": {"message": "the queue is full", "code": "queue_full"}}"#;
            let head = format!("HTTP/1.1 429 Too Many Requests\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
            Ok(AfterAnswer::KeepAlive)
        }
        1 => {
            stream.write_all(HEAD)?;
            stream.write_all(&text("a"))?;
            stream.write_all(&chunk(r#"{"error": {"message": "the worker died"}}"#))?;
            stream.write_all(&chunk("[DONE]"))?;
            stream.write_all(b"0\r\n\r\n")?;
            Ok(AfterAnswer::KeepAlive)
        }
        2 => {
            stream.write_all(&[HEAD, b"0\r\n\r\n"].concat())?;
            Ok(AfterAnswer::KeepAlive)
        }
        3 => {
            stream.write_all(&[HEAD, &text("a")].concat())?;
            Ok(AfterAnswer::Close)
        }
        4 => {
            stream.write_all(b"SSH-2.0-OpenSSH\r\n\r\n")?;
            Ok(AfterAnswer::Close)
        }
        5 => {
            stream.write_all(&[HEAD, &text("a")].concat())?;
            thread::sleep(Duration::from_secs(5));
            Ok(AfterAnswer::Close)
        }
        _ => {
            stream.write_all(&pairs(body))?;
            Ok(AfterAnswer::KeepAlive)
        }
    });
    let changes = json!({"arrivals": {"closed": {"concurrency": 1}}, "limit": {"requests": 7},
                         "timeout_seconds": 2.0});
    let report = report(server.address, &changes);
    assert_eq!((report.completed, report.failed, report.output_tokens), (1, 6, 20));
    let errors: Vec<String> = report.per_request.unwrap().into_iter().filter_map(|one| one.error).collect();
    assert_eq!(
        errors,
        [
            "HTTP 429: the queue is full",
            "the worker died",
            "the answer ended without [DONE]",
            "the server closed the connection",
            "the head of the response is not HTTP/1: invalid HTTP version",
            "no complete answer within 2 s",
        ]
    );
    assert_eq!(report.errors.len(), 6);
}

#[test]
fn a_server_that_closes_after_each_answer_is_connected_to_anew() {
    let server = server(|_, body, stream| {
        stream.write_all(&pairs(body))?;
        Ok(AfterAnswer::Close)
    });
    let report = report(server.address, &json!({}));
    assert_eq!((report.completed, report.failed), (12, 0));
    assert_eq!(server.connections.load(Ordering::SeqCst), 12);
}

#[test]
fn nobody_listens() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let report = report(address, &json!({"limit": {"requests": 3}}));
    assert_eq!((report.completed, report.failed), (0, 3));
    assert!(report.errors[0].message.starts_with("cannot connect: "), "{:?}", report.errors);
}

#[test]
fn after_the_duration_nothing_begins_and_the_rest_is_waited_for() {
    let server = server(|_, _, stream| {
        stream.write_all(&[HEAD, &text("one"), &text("two"), &text("three")].concat())?;
        thread::sleep(Duration::from_millis(1100));
        stream.write_all(&[text("four"), chunk("[DONE]"), b"0\r\n\r\n".to_vec()].concat())?;
        Ok(AfterAnswer::KeepAlive)
    });
    let changes = json!({"arrivals": {"closed": {"concurrency": 1}}, "limit": {"seconds": 1.0}});
    let report = report(server.address, &changes);
    assert_eq!((report.completed, report.failed, report.output_tokens), (1, 0, 4));
    assert!((report.window_s - 1.0).abs() < 1e-9);
    assert!(report.wall_s >= 1.1);
    // The last one came after the window: it is not in the rate.
    assert!((report.output_tokens_per_s - 3.0).abs() < 1e-9);
}

#[test]
fn the_caller_can_stop_it_and_gets_what_there_is() {
    let server = server(|_, _, _| {
        thread::sleep(Duration::from_mins(1));
        Ok(AfterAnswer::Close)
    });
    let mut calls = 0;
    let report = run(&plan(server.address, &json!({})), &mut |progress| {
        assert_eq!((progress.completed, progress.failed, progress.events), (0, 0, 0));
        calls += 1;
        if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let report = report.unwrap();
    assert_eq!(calls, 2);
    assert!(report.stopped);
    assert_eq!((report.requests, report.completed, report.failed), (0, 0, 0));
}
