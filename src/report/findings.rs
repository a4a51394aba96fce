//! Notes and warnings about a finished stage, derived from its metrics.
//!
//! Start, end and peak are means over a tenth of the points, so that no single noisy step decides.

use serde::{Deserialize, Serialize};

use super::metrics::{MetricsRow, alarms, series};
use super::progress::format_value;

/// Whether a finding asks for action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Severity {
    /// For information.
    Note,
    /// Something the user should act on.
    Warning,
}

/// One sentence about a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Note or warning.
    pub severity: Severity,
    /// The sentence.
    pub text: String,
}

/// Nats per response above which a policy is usually over-optimised: the collapsed runs of arXiv 2403.17031 (fig. 10)
/// end at 50 to 85, sound ones below 20.
const KL_HIGH: f64 = 30.0;
/// Nats per response below which the policy has hardly moved.
const KL_LOW: f64 = 0.02;
/// Nats per response; at a KL of [`KL_LOW`] the mean of eight responses varies by less, `sqrt(2 * 0.02 / 8)`.
const KL_LOW_NOISE: f64 = 0.1;
/// Nats per response; what is above this is rounding.
const KL_NEGATIVE: f64 = -0.1;
/// Fewest updates by which a mean KL below zero is told from the noise of few responses.
const FEWEST_KLS: usize = 4;
/// Standard errors that a mean must be away from a limit to be called beyond it.
const SURE: f64 = 3.0;
/// Fewest points of a mean at either end of a curve of single batches.
const FEWEST_BATCHES: usize = 3;
/// Fraction of clipped ratios above which updates are too large.
const CLIPFRAC_HIGH: f64 = 0.3;
/// Default limit in nats for the difference between a token's log-probability in generation and in training.
const LOGPROB_DIFF_HIGH: f64 = 1e-3;

/// All findings, in reading order.
pub fn findings(rows: &[MetricsRow]) -> Vec<Finding> {
    let curves = Curves(rows);
    let mut found = Vec::new();
    for (name, what) in CHANGES {
        if let Some(curve) = curves.get(name) {
            found.push(note(curve.change(what)));
        }
    }
    not_finite(rows, &mut found);
    for (step, name) in alarms(rows) {
        found.push(warning(format!(
            "Alarm `{name}` went off at step {step}: {}.",
            alarm_words(name)
        )));
    }
    supervised(&curves, &mut found);
    preferences(&curves, &mut found);
    leash(&curves, &mut found);
    over_optimisation(&curves, &mut found);
    responses(&curves, &mut found);
    updates(&curves, &mut found);
    found
}

/// What an alarm of an on-policy stage watches.
fn alarm_words(name: &str) -> &'static str {
    match name {
        "kl" => "the KL to the reference is above its limit",
        "entropy" => "the policy's responses become all the same",
        "length" => "the length of responses has drifted",
        "repetition" => "responses repeat themselves",
        "gold" => "the score rises while the gold or held-out score falls",
        "variance" => "almost all groups have equal rewards",
        _ => "a metric is beyond its limit",
    }
}

/// Whether a stage made its model much worse: the held-out loss, or without one the loss, has grown by half and by a nat.
pub fn diverged(rows: &[MetricsRow]) -> bool {
    divergence(&Curves(rows)).is_some()
}

/// The loss at the beginning and at the end of a stage that diverged.
fn divergence(curves: &Curves<'_>) -> Option<(f64, f64)> {
    let (first, last) = match curves.get("eval/loss") {
        Some(held_out) => (
            held_out.points[0].1,
            held_out.points[held_out.points.len() - 1].1,
        ),
        // Of single batches the loss may differ by much; these are means of several.
        None => {
            let loss = curves.get("loss").filter(Curve::is_long)?;
            (loss.start(), loss.end())
        }
    };
    (last > 1.5 * first && last > first + 1.0).then_some((first, last))
}

/// Metrics whose change is described in a sentence.
const CHANGES: [(&str, &str); 17] = [
    ("loss", "Training loss"),
    ("eval/loss", "Held-out loss"),
    ("accuracy", "Accuracy on training pairs"),
    ("eval/accuracy", "Accuracy on held-out pairs"),
    (
        "rewards/accuracies",
        "Accuracy of the implicit reward on training pairs",
    ),
    (
        "eval/rewards/accuracies",
        "Accuracy of the implicit reward on held-out pairs",
    ),
    ("rewards/margins", "Margin of the implicit rewards"),
    (
        "logps/chosen",
        "Log-probability of the chosen responses (nats per response)",
    ),
    (
        "logps/rejected",
        "Log-probability of the rejected responses (nats per response)",
    ),
    ("objective/scores", "Score of the responses"),
    (
        "objective/gold_scores",
        "Gold score, which is never trained on,",
    ),
    ("eval/scores", "Score on held-out prompts"),
    ("eval/gold_scores", "Gold score on held-out prompts"),
    ("objective/kl", "KL to the reference (nats per response)"),
    (
        "objective/entropy",
        "Entropy of the policy (nats per token)",
    ),
    ("val/response_length", "Response length (tokens)"),
    ("val/missing_eos_rate", "Fraction of responses without EOS"),
];

fn not_finite(rows: &[MetricsRow], found: &mut Vec<Finding>) {
    for row in rows {
        if let Some((name, _)) = row.values.iter().find(|(_, value)| value.is_null()) {
            found.push(warning(format!(
                "{name} stopped being a number at step {}: lower the learning rate, or look at that batch.",
                row.step
            )));
            return;
        }
    }
}

fn supervised(curves: &Curves<'_>, found: &mut Vec<Finding>) {
    if let Some((first, last)) = divergence(curves) {
        found.push(warning(format!(
            "The stage diverged: the loss went from {} to {}, so that its model is worse than the one it began with. Lower the learning rate.",
            format_value(first),
            format_value(last)
        )));
    }
    if let Some(loss) = curves.get("loss").filter(Curve::is_long)
        && loss.rises()
    {
        found.push(warning(
            "The training loss rose: the learning rate is probably too high.".into(),
        ));
    }
    if let Some(loss) = curves.get("eval/loss") {
        let (step, lowest) = loss.extreme(f64::lt);
        let last = loss.points[loss.points.len() - 1].1;
        if last > lowest * 1.03 {
            found.push(warning(format!(
                "The held-out loss was lowest at step {step} ({}) and has risen since: stop there, or use fewer epochs.",
                format_value(lowest)
            )));
        }
    }
    if let Some(accuracy) = curves.get("eval/accuracy")
        && accuracy.end() < 0.55
    {
        found.push(warning(format!(
            "The reward model is right on {:.0} % of held-out pairs, hardly more than chance: do not train a policy against it.",
            accuracy.end() * 100.0
        )));
    }
}

/// Direct preference optimisation.
fn preferences(curves: &Curves<'_>, found: &mut Vec<Finding>) {
    // Before the first step all implicit rewards are 0 and no pair counts as right, so step 0 is left out.
    if let Some(accuracy) = curves.get("eval/rewards/accuracies")
        && accuracy.end() < 0.55
    {
        found.push(warning(format!(
            "On held-out pairs the policy moved the right way in {:.0} %, hardly more than chance: it learned its pairs by heart, or nothing. Use fewer epochs, a lower learning rate, or more comparisons.",
            accuracy.end() * 100.0
        )));
    }
    if let (Some(chosen), Some(margin)) =
        (curves.get("rewards/chosen"), curves.get("rewards/margins"))
        && chosen.is_long()
        && margin.end() > 0.0
        && -chosen.end() > margin.end()
    {
        found.push(warning(format!(
            "The chosen responses lost more than they lead by (reward {}, margin {}): the policy moves away from both sides, towards responses that nobody ranked. Raise beta, lower the learning rate, or stop earlier.",
            format_value(chosen.end()),
            format_value(margin.end())
        )));
    }
}

fn leash(curves: &Curves<'_>, found: &mut Vec<Finding>) {
    let Some(kl) = curves.get("objective/kl") else {
        return;
    };
    let error = kl.noise() / (kl.points.len() as f64).sqrt();
    let is_negative = kl.points.len() >= FEWEST_KLS && kl.mean() < -SURE * error;
    if kl.extreme(f64::lt).1 < KL_NEGATIVE && is_negative {
        found.push(warning(
            "The KL is below zero on average: responses are not sampled from the distribution that is scored (top-k, top-p or another temperature).".into(),
        ));
    } else if kl.end() > KL_HIGH {
        found.push(warning(format!(
            "The KL reached {} nats per response, far from the reference: expect over-optimisation. Raise kl_coef or stop earlier.",
            format_value(kl.end())
        )));
    } else if kl.is_long() && kl.end() < KL_LOW && kl.noise() < KL_LOW_NOISE {
        found.push(warning(format!(
            "The KL is still {} nats per response: the policy has hardly moved. Raise the learning rate or the number of episodes, or lower kl_coef.",
            format_value(kl.end())
        )));
    }
}

/// Reward hacking: the trained score rises while the gold score falls.
fn over_optimisation(curves: &Curves<'_>, found: &mut Vec<Finding>) {
    for (proxy, gold, is_held_out) in [
        ("objective/scores", "objective/gold_scores", false),
        ("eval/scores", "eval/gold_scores", true),
    ] {
        let (Some(proxy), Some(gold)) = (curves.get(proxy), curves.get(gold)) else {
            continue;
        };
        // Each rollout has other prompts: a few of them differ by chance.
        if !is_held_out && !gold.is_long() {
            continue;
        }
        let (step, peak) = gold.smooth_peak();
        let gained = peak - gold.start();
        let lost = peak - gold.end();
        // A quarter of what had been gained; without a gain, a tenth of the gold score's spread.
        let allowed = (gained * 0.25).max(gold.spread() * 0.1);
        if proxy.end() > proxy.start() && lost > allowed && lost > 0.0 {
            found.push(warning(format!(
                "Reward hacking: the score rose from {} to {} while the gold score fell from {} (around step {step}) to {}. Stop near step {step}, raise kl_coef, or improve the reward.",
                format_value(proxy.start()),
                format_value(proxy.end()),
                format_value(peak),
                format_value(gold.end())
            )));
            return;
        }
    }
}

fn responses(curves: &Curves<'_>, found: &mut Vec<Finding>) {
    if let Some(length) = curves.get("val/response_length").filter(Curve::is_long)
        && length.start() > 0.0
    {
        let ratio = length.end() / length.start();
        if !(0.67..=1.5).contains(&ratio) {
            found.push(warning(format!(
                "Responses became {} ({} -> {} tokens): check whether the reward pays for length alone.",
                if ratio > 1.0 { "longer" } else { "shorter" },
                format_value(length.start()),
                format_value(length.end())
            )));
        }
    }
    if let Some(missing) = curves.get("val/missing_eos_rate")
        && missing.end() > 0.5
    {
        found.push(warning(format!(
            "{:.0} % of the responses do not end with EOS: raise response_length, set missing_eos, or train the SFT stage on completions that end with EOS.",
            missing.end() * 100.0
        )));
    }
}

fn updates(curves: &Curves<'_>, found: &mut Vec<Finding>) {
    if let Some(clipped) = curves.get("policy/clipfrac_avg")
        && clipped.end() > CLIPFRAC_HIGH
    {
        found.push(warning(format!(
            "{:.0} % of the ratios are clipped: updates are too large. Lower the learning rate or num_ppo_epochs.",
            clipped.end() * 100.0
        )));
    }
    if let Some(entropy) = curves.get("objective/entropy").filter(Curve::is_long)
        && entropy.end() < entropy.start() * 0.2
    {
        found.push(warning(
            "The policy's entropy fell below a fifth of its start: its responses are nearly always the same.".into(),
        ));
    }
    // One update suffices: this is no trend.
    let differences = series(curves.0, "rollout/logprob_max_diff");
    let largest = differences.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    let limit = series(curves.0, "rollout/logprob_diff_limit");
    let limit = limit.first().map_or(LOGPROB_DIFF_HIGH, |&(_, limit)| limit);
    if let Some(&(step, largest)) = largest
        && largest > limit
    {
        found.push(warning(format!(
            "Log-probabilities differ by {} nats between sampling and training (step {step}): run `temper doctor` on this backend.",
            format_value(largest)
        )));
    }
}

struct Curves<'a>(&'a [MetricsRow]);

impl Curves<'_> {
    fn get(&self, name: &str) -> Option<Curve> {
        let points = series(self.0, name);
        (points.len() > 1).then_some(Curve { points })
    }
}

/// At least two points.
struct Curve {
    points: Vec<(usize, f64)>,
}

impl Curve {
    /// Whether there are enough points for a trend.
    fn is_long(&self) -> bool {
        self.points.len() >= 10
    }

    fn window(&self) -> usize {
        (self.points.len() / 10).max(1)
    }

    fn start(&self) -> f64 {
        mean(&self.points[..self.window()])
    }

    fn end(&self) -> f64 {
        mean(&self.points[self.points.len() - self.window()..])
    }

    fn mean(&self) -> f64 {
        mean(&self.points)
    }

    /// Standard deviation of a point around its neighbours, `sqrt(mean((x[i + 1] - x[i])^2) / 2)`: noise without the trend.
    ///
    /// # Source
    /// von Neumann et al. 1941, The mean square successive difference.
    fn noise(&self) -> f64 {
        let steps = self.points.windows(2).map(|pair| pair[1].1 - pair[0].1);
        let squares: f64 = steps.map(|step| step * step).sum();
        (squares / (self.points.len() - 1) as f64 / 2.0).sqrt()
    }

    /// Whether the end is above the start by more than the noise of single batches explains.
    fn rises(&self) -> bool {
        let window = self.window().max(FEWEST_BATCHES).min(self.points.len());
        let start = mean(&self.points[..window]);
        let end = mean(&self.points[self.points.len() - window..]);
        // Of the difference of two means.
        let error = self.noise() * (2.0 / window as f64).sqrt();
        end - start > SURE * error
    }

    /// Largest minus smallest window mean.
    fn spread(&self) -> f64 {
        let means = || self.points.windows(self.window()).map(mean);
        means().fold(f64::NEG_INFINITY, f64::max) - means().fold(f64::INFINITY, f64::min)
    }

    /// The best point by the order `better`.
    fn extreme(&self, better: fn(&f64, &f64) -> bool) -> (usize, f64) {
        let first = self.points[0];
        self.points[1..].iter().fold(first, |best, &point| {
            if better(&point.1, &best.1) {
                point
            } else {
                best
            }
        })
    }

    /// The largest window mean and the step at the window's middle.
    fn smooth_peak(&self) -> (usize, f64) {
        let window = self.window();
        let mut best = (self.points[window / 2].0, self.start());
        for (i, part) in self.points.windows(window).enumerate() {
            if mean(part) > best.1 {
                best = (self.points[i + window / 2].0, mean(part));
            }
        }
        best
    }

    fn change(&self, what: &str) -> String {
        let (start, end) = (format_value(self.start()), format_value(self.end()));
        let verb = if start == end {
            return format!("{what} stayed at {end}.");
        } else if self.end() > self.start() {
            "rose"
        } else {
            "fell"
        };
        format!("{what} {verb} from {start} to {end}.")
    }
}

fn mean(points: &[(usize, f64)]) -> f64 {
    points.iter().map(|p| p.1).sum::<f64>() / points.len() as f64
}

fn note(text: String) -> Finding {
    Finding {
        severity: Severity::Note,
        text,
    }
}

fn warning(text: String) -> Finding {
    Finding {
        severity: Severity::Warning,
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Twenty rows; each metric is a function of the step 1..=20.
    fn run(metrics: &[(&str, &dyn Fn(f64) -> f64)]) -> Vec<Finding> {
        let rows: Vec<MetricsRow> = (1..=20)
            .map(|step| MetricsRow {
                step,
                values: metrics
                    .iter()
                    .map(|(name, f)| (name.to_string(), json!(f(step as f64))))
                    .collect(),
            })
            .collect();
        findings(&rows)
    }

    fn warnings(found: &[Finding]) -> Vec<&str> {
        found
            .iter()
            .filter(|f| f.severity == Severity::Warning)
            .map(|f| f.text.as_str())
            .collect()
    }

    #[test]
    fn a_sound_run_has_no_warnings() {
        let found = run(&[
            ("objective/scores", &|s| s / 10.0),
            ("objective/gold_scores", &|s| s / 20.0),
            ("objective/kl", &|s| s / 4.0),
            ("policy/clipfrac_avg", &|_| 0.1),
            ("val/response_length", &|s| 30.0 + s / 10.0),
        ]);
        assert_eq!(warnings(&found), Vec::<&str>::new());
        // A tenth of twenty points: the mean of 0.1 and 0.2, then of 1.9 and 2.0.
        assert_eq!(
            found[0].text,
            "Score of the responses rose from 0.1500 to 1.950."
        );
        assert_eq!(
            found[1].text,
            "Gold score, which is never trained on, rose from 0.07500 to 0.9750."
        );
    }

    #[test]
    fn a_stage_that_diverged_says_so() {
        let diverging = |name: &str, last: f64| {
            let rows: Vec<MetricsRow> = (0..20)
                .map(|step| MetricsRow {
                    step,
                    values: serde_json::Map::from_iter([(
                        name.to_owned(),
                        json!(0.9 + last * step as f64 / 19.0),
                    )]),
                })
                .collect();
            (diverged(&rows), warnings(&findings(&rows)).join(" "))
        };
        for name in ["eval/loss", "loss"] {
            let (worse, said) = diverging(name, 16_530.0);
            assert!(worse && said.contains("The stage diverged"), "{said}");
            assert!(!diverging(name, 0.3).0);
        }
        // PPO's losses say nothing of the kind.
        assert!(!diverging("loss/policy_avg", 16_530.0).0);
    }

    #[test]
    fn reward_hacking_is_found_with_the_step_to_stop_at() {
        let found = run(&[
            ("objective/scores", &|s| s),
            ("objective/gold_scores", &|s| 10.0 - (s - 8.0).abs()),
        ]);
        let warnings = warnings(&found);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].starts_with("Reward hacking: the score rose from 1.500 to 19.50 while"),
            "{}",
            warnings[0]
        );
        assert!(warnings[0].contains("Stop near step 8,"), "{}", warnings[0]);
    }

    #[test]
    fn a_few_rollouts_are_too_few_to_see_hacking() {
        let rows = |gold: &str| -> Vec<MetricsRow> {
            let proxy = gold.replace("gold_", "");
            (0..8)
                .map(|step| MetricsRow {
                    step,
                    values: serde_json::Map::from_iter([
                        (proxy.clone(), json!(step as f64)),
                        (gold.to_owned(), json!(-(step as f64 - 4.0).abs())),
                    ]),
                })
                .collect()
        };
        let hacks = |gold: &str| {
            let found = findings(&rows(gold));
            warnings(&found).iter().any(|text| text.contains("hacking"))
        };
        assert!(!hacks("objective/gold_scores"));
        assert!(hacks("eval/gold_scores"));
    }

    #[test]
    fn gold_that_keeps_most_of_its_gain_is_not_hacking() {
        let found = run(&[
            ("objective/scores", &|s| s),
            ("objective/gold_scores", &|s| {
                s.min(18.0) - (s - 18.0).max(0.0)
            }),
        ]);
        assert_eq!(warnings(&found), Vec::<&str>::new());
    }

    #[test]
    fn each_ppo_alarm_sounds_alone() {
        type Case<'a> = (&'a str, &'a dyn Fn(f64) -> f64, &'a str);
        let cases: [Case<'_>; 9] = [
            ("objective/kl", &|s| s * 3.0, "far from the reference"),
            ("objective/kl", &|s| -s / 10.0, "below zero"),
            ("objective/kl", &|_| 0.001, "hardly moved"),
            ("val/response_length", &|s| 10.0 + s, "became longer"),
            ("val/response_length", &|s| 30.0 - s, "became shorter"),
            ("val/missing_eos_rate", &|_| 0.75, "75 % of the responses"),
            ("policy/clipfrac_avg", &|_| 0.4, "40 % of the ratios"),
            ("objective/entropy", &|s| 3.0 / s, "nearly always the same"),
            ("rollout/logprob_max_diff", &|_| 0.5, "temper doctor"),
        ];
        for (name, f, expected) in cases {
            let found = run(&[(name, f)]);
            let warnings = warnings(&found);
            assert_eq!(warnings.len(), 1, "{name}: {warnings:?}");
            assert!(warnings[0].contains(expected), "{}", warnings[0]);
        }
    }

    #[test]
    fn one_update_is_enough_to_see_that_sampling_and_training_disagree() {
        let rows = |diff: f64| {
            [MetricsRow {
                step: 1,
                values: [("rollout/logprob_max_diff".to_string(), json!(diff))]
                    .into_iter()
                    .collect(),
            }]
        };
        assert_eq!(findings(&rows(9e-4)), []);
        let found = findings(&rows(2e-3));
        assert!(
            found[0].text.contains("(step 1): run `temper doctor`"),
            "{found:?}"
        );
    }

    #[test]
    fn overfitting_and_chance_accuracy_are_found() {
        let found = run(&[
            ("eval/loss", &|s| 2.0 + (s - 6.0).abs() / 10.0),
            ("eval/accuracy", &|_| 0.5),
            ("loss", &|s| s),
        ]);
        let warnings = warnings(&found);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(warnings[0].contains("loss rose"));
        assert!(warnings[1].contains("lowest at step 6 (2)"));
        assert!(warnings[2].contains("50 % of held-out pairs"));
    }

    /// The warnings of a curve with these points.
    fn said(name: &str, points: &[f64]) -> String {
        let rows: Vec<MetricsRow> = (points.iter().enumerate())
            .map(|(step, &value)| MetricsRow {
                step: step + 1,
                values: serde_json::Map::from_iter([(name.to_owned(), json!(value))]),
            })
            .collect();
        warnings(&findings(&rows)).join(" ")
    }

    #[test]
    fn a_loss_that_differs_by_batches_has_not_risen() {
        // Twelve batches of a short stage; the last one is harder than the first.
        let short = [
            2.61, 2.74, 2.49, 2.80, 2.55, 2.69, 2.44, 2.71, 2.50, 2.66, 2.58, 2.67,
        ];
        assert_eq!(said("loss", &short), "");
        let rising: Vec<f64> = short
            .iter()
            .enumerate()
            .map(|(i, x)| x + 0.1 * i as f64)
            .collect();
        assert!(said("loss", &rising).contains("The training loss rose"));
    }

    #[test]
    fn the_kl_of_few_responses_may_be_below_zero_by_chance() {
        // Mean -0.04, standard deviation of a point 0.4: its standard error is 0.16.
        let noise = [0.31, -0.42, 0.12, -0.36, 0.25, -0.14];
        assert_eq!(said("objective/kl", &noise), "");
        assert_eq!(said("objective/kl", &[-0.4, -0.5, -0.45]), "");
        let below: Vec<f64> = noise.iter().map(|x| x - 1.0).collect();
        assert!(said("objective/kl", &below).contains("The KL is below zero"));
        // What is noise is no sign of a policy that has not moved either.
        let long: Vec<f64> = noise.iter().chain(&noise).copied().collect();
        assert_eq!(said("objective/kl", &long), "");
    }

    #[test]
    fn preferences_that_go_astray_are_found() {
        let found = run(&[
            ("eval/rewards/accuracies", &|_| 0.5),
            ("rewards/chosen", &|s| -s),
            ("rewards/margins", &|s| s / 2.0),
        ]);
        let warnings = warnings(&found);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("the right way in 50 %"));
        assert!(warnings[1].contains("(reward -19.50, margin 9.750)"));
    }

    #[test]
    fn preferences_that_are_learned_are_no_warning() {
        let found = run(&[
            ("eval/rewards/accuracies", &|s| 0.5 + s / 50.0),
            ("rewards/chosen", &|s| -s / 4.0),
            ("rewards/margins", &|s| s / 2.0),
        ]);
        assert_eq!(warnings(&found), Vec::<&str>::new());
    }

    #[test]
    fn a_value_that_is_not_finite_is_named_with_its_step() {
        let rows = [MetricsRow {
            step: 7,
            values: [("loss".to_string(), json!(null))].into_iter().collect(),
        }];
        let found = findings(&rows);
        assert_eq!(warnings(&found).len(), 1);
        assert!(
            found[0]
                .text
                .starts_with("loss stopped being a number at step 7")
        );
    }
}
