//! `temper doctor` on several ranks: where they are, and how fast they add gradients.

use std::time::Instant;

use crate::collective;
use crate::report::table;

/// Numbers of the reduction: 40 MB, the gradients of a LoRA of rank 16 on a model of 0.6B parameters.
const VALUES: usize = 10_000_000;
/// Reductions that are timed, after one that is not.
const REPEATS: usize = 3;

/// The ranks with their hosts and what each computes on, and the bandwidth of a reduction. `device`: what this rank computes on.
pub(super) fn survey(device: &str) -> String {
    let ranks = collective::ranks();
    let threads = rayon::current_num_threads().to_string();
    let own = [device, &threads].join("\n");
    let rows: Vec<Vec<String>> = (ranks.gather(own.as_bytes()).iter().enumerate())
        .map(|(rank, bytes)| {
            let text = String::from_utf8_lossy(bytes);
            let (device, threads) = text.split_once('\n').unwrap_or((&text, ""));
            vec![
                rank.to_string(),
                ranks.host(rank),
                device.to_owned(),
                threads.to_owned(),
            ]
        })
        .collect();
    let ranks_table = table(&["rank", "host", "device", "threads"], &rows);
    let mut values = vec![1.0f32; VALUES];
    let mut fastest = f64::INFINITY;
    for repeat in 0..=REPEATS {
        values.fill(1.0);
        ranks.barrier();
        let start = Instant::now();
        ranks.sum_in_place(&mut values);
        if repeat > 0 {
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
    }
    let world = ranks.world() as f32;
    let verdict = match values.iter().all(|&value| value == world) {
        true => "correct",
        false => "WRONG",
    };
    format!(
        "{ranks_table}\nsum of 40 MB over {world} ranks: {:.0} ms, {:.0} MB/s, {verdict}\n\n",
        1e3 * fastest,
        VALUES as f64 * 4e-6 / fastest
    )
}
