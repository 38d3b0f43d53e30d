//! How fast the engine decodes while something else wants the same cores, for one policy of waiting
//! against another.
//!
//! ```sh
//! cargo bench --bench contention -- MODEL.gguf                       # auto, active and passive
//! cargo bench --bench contention -- MODEL.gguf --streams 1,8 --busy 0,1 --rounds 9 \
//!     spin=1000 spin=100000,wait_policy=active threads=1
//! ```
//!
//! Each setting runs in a process of its own, which rests while it is not its turn; the turns go round,
//! so that foreign load meets all of them. Printed is the median of tokens per second, then that of the
//! slowest twentieth of the steps, then the CPU time per token.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for developers"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use support::{Context, Params, engine};

/// Tokens in each sequence when its turn begins, and when it starts over.
const DEPTH: std::ops::Range<u32> = 64..192;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("spin") => spin(),
        Some("child") => child(Path::new(&arguments[1]), &arguments[2]),
        Some(model) => compare(model, &arguments[1..]),
        None => eprintln!("a model is missing: cargo bench --bench contention -- MODEL.gguf"),
    }
}

/// Keeps a processor busy until whoever started it closes its standard input, or is gone.
fn spin() {
    std::thread::spawn(|| {
        loop {
            std::hint::spin_loop();
        }
    });
    let _ = std::io::stdin().lock().lines().count();
}

// ------------------------------------------------------------------------------------------ one setting

/// Decodes as often as it is told to on its standard input: streams and seconds.
fn child(path: &Path, setting: &str) {
    let (engine, _turn) = engine();
    let model = engine.try_load(path).unwrap();
    // The engine of the tests has one thread unless it is told otherwise.
    let all = std::thread::available_parallelism().unwrap();
    let setting =
        if setting.contains("threads=") { setting.to_owned() } else { format!("{setting},threads={all}") };
    let options: Vec<(&'static str, &'static str)> = setting
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| *key != "spin")
        .map(|(key, value)| (&*key.to_owned().leak(), &*value.to_owned().leak()))
        .collect();
    let options: &'static [_] = Vec::leak(options);
    let context = model.context(Params { sequences: 32, length: DEPTH.end, options, ..Params::default() });
    let mut prompt = vec![0; DEPTH.start as usize];
    for (index, token) in prompt.iter_mut().enumerate() {
        *token = 300 + 7 * index as i32 % 150;
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let numbers: Vec<f64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
        let (rate, slowest, cpu) = decode(&context, &prompt, numbers[0] as u32, numbers[1]);
        println!("{rate} {slowest} {cpu}");
    }
}

/// Tokens per second, the milliseconds of a slow step, and the microseconds of CPU time per token.
fn decode(context: &Context<'_>, prompt: &[i32], streams: u32, seconds: f64) -> (f64, f64, f64) {
    let restart = || {
        for sequence in 0..streams {
            context.remove(sequence, 0);
            let ticket = context.submit(&[(sequence, 0, prompt, 0)]).unwrap();
            context.wait(ticket, 0);
        }
    };
    restart();
    let mut steps = Vec::new();
    let (mut depth, mut tokens, mut busy) = (DEPTH.start, 0, 0.0);
    let mut cpu = -cpu_seconds();
    while busy < seconds {
        if depth == DEPTH.end {
            cpu += cpu_seconds();
            restart();
            cpu -= cpu_seconds();
            depth = DEPTH.start;
        }
        let token = [400 + depth as i32 % 64];
        let slices: Vec<_> = (0..streams).map(|sequence| (sequence, depth, &token[..], 1)).collect();
        let begin = Instant::now();
        let ticket = context.submit(&slices).unwrap();
        context.wait(ticket, streams as usize);
        // What the host does between two steps: it samples, and sends.
        let end = Instant::now() + Duration::from_micros(50 + 20 * u64::from(streams));
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        let step = begin.elapsed().as_secs_f64();
        steps.push(step);
        busy += step;
        tokens += streams;
        depth += 1;
    }
    cpu += cpu_seconds();
    steps.sort_by(f64::total_cmp);
    let slow = steps[(steps.len() * 95 / 100).min(steps.len() - 1)];
    (f64::from(tokens) / busy, slow * 1e3, cpu / f64::from(tokens) * 1e6)
}

/// CPU time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

// ---------------------------------------------------------------------------------------------- parent

struct Worker {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    setting: String,
}

impl Worker {
    fn start(model: &str, setting: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["child", model, setting]).stdin(Stdio::piped()).stdout(Stdio::piped());
        match setting.split(',').find_map(|pair| pair.strip_prefix("spin=")) {
            Some("default") => command.env_remove("GOMP_SPINCOUNT"),
            Some(count) => command.env("GOMP_SPINCOUNT", count),
            None => command.env("GOMP_SPINCOUNT", DEFAULT_SPIN),
        };
        let mut process = command.spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut worker = Self { process, input, output: BufReader::new(output), setting: setting.to_owned() };
        worker.line();
        worker
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{} ended", self.setting);
        line
    }

    fn turn(&mut self, streams: u32, seconds: f64) -> [f64; 3] {
        writeln!(self.input, "{streams} {seconds}").unwrap();
        let line = self.line();
        let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap());
        std::array::from_fn(|_| numbers.next().unwrap())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the node sets for its workers.
const DEFAULT_SPIN: &str = "10000";

fn compare(model: &str, arguments: &[String]) {
    let (mut streams, mut busy, mut rounds, mut seconds) = (vec![1, 8, 16, 32], vec![0, 1], 7, 1.0);
    let mut settings = Vec::new();
    let list = |text: &str| text.split(',').map(|number| number.parse::<u32>().unwrap()).collect::<Vec<_>>();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().unwrap();
        match argument.as_str() {
            "--streams" => streams = list(value()),
            "--busy" => busy = list(value()),
            "--rounds" => rounds = value().parse().unwrap(),
            "--seconds" => seconds = value().parse().unwrap(),
            setting => settings.push(setting.to_owned()),
        }
    }
    if settings.is_empty() {
        settings = ["auto", "active", "passive"].map(|policy| format!("wait_policy={policy}")).to_vec();
    }
    let mut workers: Vec<Worker> = settings.iter().map(|setting| Worker::start(model, setting)).collect();
    for &busy in &busy {
        let mut competitors: Vec<Child> = (0..busy)
            .map(|_| {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.arg("spin").stdin(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for &streams in &streams {
            println!("{streams} streams, {busy} busy processes beside");
            let mut seen: Vec<Vec<[f64; 3]>> = vec![Vec::new(); workers.len()];
            for _ in 0..rounds {
                for (worker, seen) in workers.iter_mut().zip(&mut seen) {
                    seen.push(worker.turn(streams, seconds));
                }
            }
            for (worker, seen) in workers.iter().zip(&seen) {
                let median = |field: usize| {
                    let mut values: Vec<f64> = seen.iter().map(|turn| turn[field]).collect();
                    values.sort_by(f64::total_cmp);
                    values[values.len() / 2]
                };
                println!(
                    "  {:40} {:8.1} tokens/s   slow step {:7.2} ms   CPU {:7.0} us/token",
                    worker.setting,
                    median(0),
                    median(1),
                    median(2)
                );
            }
        }
        for competitor in &mut competitors {
            let _ = competitor.kill();
            let _ = competitor.wait();
        }
    }
}
