//! The Porter stemmer with NLTK's extensions, as `rouge_score` uses it.

/// Irregular words with their stems.
const IRREGULAR: &[(&str, &str)] = &[
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// A suffix, its replacement, and a condition on the stem before it.
type Rule = (&'static str, &'static str, fn(&str) -> bool);

/// The stem of a lowercase ASCII word.
///
/// # Source
/// Porter 1980, "An algorithm for suffix stripping", with the extensions of NLTK's default mode: irregular words, `ies`
/// and `ied` of four-letter words become `ie`, final `y` becomes `i` after any consonant, and the later rules `bli`,
/// `fulli`, `logi` and `alli` before a second pass of step 2.
pub(super) fn stem(word: &str) -> String {
    debug_assert!(word.is_ascii(), "the rules slice by bytes");
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_string();
    }
    if word.len() <= 2 {
        return word.to_string();
    }
    let word = plural(word);
    let word = past_or_progressive(&word);
    let word = final_y(word);
    let word = double_suffix(&word);
    let word = apply(&word, STEP_3);
    let word = apply(&word, STEP_4);
    final_double_l(final_e(word))
}

/// Step 1a.
fn plural(word: &str) -> String {
    if word.len() == 4 && word.ends_with("ies") {
        return word[..3].to_string();
    }
    let rules: &[Rule] = &[
        ("sses", "ss", always),
        ("ies", "i", always),
        ("ss", "ss", always),
        ("s", "", always),
    ];
    apply(word, rules)
}

/// Step 1b.
fn past_or_progressive(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("ied") {
        let end = if word.len() == 4 { "ie" } else { "i" };
        return format!("{stem}{end}");
    }
    if let Some(stem) = word.strip_suffix("eed") {
        return if measure(stem) > 0 {
            format!("{stem}ee")
        } else {
            word.to_string()
        };
    }
    let stripped = ["ed", "ing"]
        .iter()
        .filter_map(|suffix| word.strip_suffix(suffix))
        .find(|stem| (0..stem.len()).any(|at| !is_consonant(stem, at)));
    let Some(stem) = stripped else {
        return word.to_string();
    };
    if ["at", "bl", "iz"].iter().any(|end| stem.ends_with(end)) {
        return format!("{stem}e");
    }
    if ends_in_double_consonant(stem) {
        let last = &stem[stem.len() - 1..];
        let keep = ["l", "s", "z"].contains(&last);
        return stem[..stem.len() - usize::from(!keep)].to_string();
    }
    if measure(stem) == 1 && ends_short(stem) {
        return format!("{stem}e");
    }
    stem.to_string()
}

/// Step 1c.
fn final_y(word: String) -> String {
    match word.strip_suffix('y') {
        Some(stem) if stem.len() > 1 && is_consonant(stem, stem.len() - 1) => format!("{stem}i"),
        _ => word,
    }
}

/// Step 2.
fn double_suffix(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("alli").filter(|stem| some(stem)) {
        return double_suffix(&format!("{stem}al"));
    }
    // The condition of this rule counts the "l" as part of the stem.
    if let Some(stem) = word.strip_suffix("logi") {
        return if measure(&word[..word.len() - 3]) > 0 {
            format!("{stem}log")
        } else {
            word.to_string()
        };
    }
    apply(word, STEP_2)
}

/// Step 5a.
fn final_e(word: String) -> String {
    match word.strip_suffix('e') {
        Some(stem) if measure(stem) > 1 || (measure(stem) == 1 && !ends_short(stem)) => {
            stem.to_string()
        }
        _ => word,
    }
}

/// Step 5b.
fn final_double_l(word: String) -> String {
    if word.ends_with("ll") && measure(&word[..word.len() - 1]) > 1 {
        word[..word.len() - 1].to_string()
    } else {
        word
    }
}

const STEP_2: &[Rule] = &[
    ("ational", "ate", some),
    ("tional", "tion", some),
    ("enci", "ence", some),
    ("anci", "ance", some),
    ("izer", "ize", some),
    ("bli", "ble", some),
    ("alli", "al", some),
    ("entli", "ent", some),
    ("eli", "e", some),
    ("ousli", "ous", some),
    ("ization", "ize", some),
    ("ation", "ate", some),
    ("ator", "ate", some),
    ("alism", "al", some),
    ("iveness", "ive", some),
    ("fulness", "ful", some),
    ("ousness", "ous", some),
    ("aliti", "al", some),
    ("iviti", "ive", some),
    ("biliti", "ble", some),
    ("fulli", "ful", some),
];

const STEP_3: &[Rule] = &[
    ("icate", "ic", some),
    ("ative", "", some),
    ("alize", "al", some),
    ("iciti", "ic", some),
    ("ical", "ic", some),
    ("ful", "", some),
    ("ness", "", some),
];

const STEP_4: &[Rule] = &[
    ("al", "", more),
    ("ance", "", more),
    ("ence", "", more),
    ("er", "", more),
    ("ic", "", more),
    ("able", "", more),
    ("ible", "", more),
    ("ant", "", more),
    ("ement", "", more),
    ("ment", "", more),
    ("ent", "", more),
    ("ion", "", more_after_s_or_t),
    ("ou", "", more),
    ("ism", "", more),
    ("ate", "", more),
    ("iti", "", more),
    ("ous", "", more),
    ("ive", "", more),
    ("ize", "", more),
];

/// The first rule whose suffix fits decides, whether or not its condition holds.
fn apply(word: &str, rules: &[Rule]) -> String {
    for (suffix, replacement, condition) in rules {
        if let Some(stem) = word.strip_suffix(suffix) {
            return if condition(stem) {
                format!("{stem}{replacement}")
            } else {
                word.to_string()
            };
        }
    }
    word.to_string()
}

fn always(_: &str) -> bool {
    true
}

fn some(stem: &str) -> bool {
    measure(stem) > 0
}

fn more(stem: &str) -> bool {
    measure(stem) > 1
}

fn more_after_s_or_t(stem: &str) -> bool {
    measure(stem) > 1 && stem.ends_with(['s', 't'])
}

/// Whether the letter at byte `at` is a consonant; `y` is one at the start and after a vowel.
fn is_consonant(word: &str, at: usize) -> bool {
    match word.as_bytes()[at] {
        b'a' | b'e' | b'i' | b'o' | b'u' => false,
        b'y' => at == 0 || !is_consonant(word, at - 1),
        _ => true,
    }
}

/// How often a vowel is followed by a consonant.
fn measure(stem: &str) -> usize {
    (1..stem.len())
        .filter(|&at| is_consonant(stem, at) && !is_consonant(stem, at - 1))
        .count()
}

fn ends_in_double_consonant(word: &str) -> bool {
    let bytes = word.as_bytes();
    let len = bytes.len();
    len >= 2 && bytes[len - 1] == bytes[len - 2] && is_consonant(word, len - 1)
}

/// Ends in consonant, vowel, consonant other than w, x, y; or is a vowel and a consonant.
fn ends_short(word: &str) -> bool {
    let len = word.len();
    let consonant = |back: usize| is_consonant(word, len - back);
    match len {
        0 | 1 => false,
        2 => !consonant(2) && consonant(1),
        _ => consonant(3) && !consonant(2) && consonant(1) && !word.ends_with(['w', 'x', 'y']),
    }
}

#[cfg(test)]
mod tests {
    use super::stem;

    #[test]
    fn stems_of_porters_examples_and_of_nltks_departures() {
        // From nltk.stem.porter.PorterStemmer().stem, default mode.
        let cases = [
            ("caresses", "caress"),
            ("ponies", "poni"),
            ("ties", "tie"),
            ("dies", "die"),
            ("cats", "cat"),
            ("feed", "feed"),
            ("agreed", "agre"),
            ("plastered", "plaster"),
            ("motoring", "motor"),
            ("sing", "sing"),
            ("conflated", "conflat"),
            ("troubled", "troubl"),
            ("sized", "size"),
            ("hopping", "hop"),
            ("hissing", "hiss"),
            ("falling", "fall"),
            ("fizzed", "fizz"),
            ("failing", "fail"),
            ("filing", "file"),
            ("happy", "happi"),
            ("sky", "sky"),
            ("enjoy", "enjoy"),
            ("spied", "spi"),
            ("died", "die"),
            ("tying", "tie"),
            ("relational", "relat"),
            ("conditional", "condit"),
            ("valenci", "valenc"),
            ("hesitanci", "hesit"),
            ("digitizer", "digit"),
            ("conformabli", "conform"),
            ("radically", "radic"),
            ("differently", "differ"),
            ("vilely", "vile"),
            ("analogously", "analog"),
            ("vietnamization", "vietnam"),
            ("predication", "predic"),
            ("operator", "oper"),
            ("feudalism", "feudal"),
            ("decisiveness", "decis"),
            ("hopefulness", "hope"),
            ("callousness", "callous"),
            ("formality", "formal"),
            ("sensitivity", "sensit"),
            ("sensibility", "sensibl"),
            ("carefully", "care"),
            ("biology", "biolog"),
            ("analogy", "analog"),
            ("triplicate", "triplic"),
            ("formative", "form"),
            ("formalize", "formal"),
            ("electricity", "electr"),
            ("electrical", "electr"),
            ("hopeful", "hope"),
            ("goodness", "good"),
            ("revival", "reviv"),
            ("allowance", "allow"),
            ("inference", "infer"),
            ("airliner", "airlin"),
            ("adjustable", "adjust"),
            ("irritant", "irrit"),
            ("replacement", "replac"),
            ("adjustment", "adjust"),
            ("dependent", "depend"),
            ("adoption", "adopt"),
            ("communism", "commun"),
            ("activate", "activ"),
            ("angularity", "angular"),
            ("homologous", "homolog"),
            ("effective", "effect"),
            ("bowdlerize", "bowdler"),
            ("probate", "probat"),
            ("rate", "rate"),
            ("cease", "ceas"),
            ("controll", "control"),
            ("roll", "roll"),
            ("news", "news"),
            ("inning", "inning"),
            ("skies", "sky"),
            ("eed4", "eed4"),
            ("using", "use"),
            ("adds", "add"),
            ("oed", "o"),
        ];
        for (word, expected) in cases {
            assert_eq!(stem(word), expected, "{word}");
        }
    }
}
