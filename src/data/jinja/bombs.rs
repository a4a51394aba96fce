//! Tests: templates that once took all memory, time or stack, and usual ones that use what is bounded.

use std::time::Instant;

use minijinja::UndefinedBehavior;
use serde_json::json;

use super::{compile, environment, explain, from_json, render};

fn rendered(source: &str) -> Result<String, String> {
    let context =
        json!({"messages": [{"role": "user", "content": "hi there"}], "n": 1000000000000_u64});
    let mut env = environment(UndefinedBehavior::Lenient, None);
    compile(&mut env, source)
        .and_then(|()| render(&env, from_json(&context)))
        .map_err(|e| explain(&e))
}

#[test]
fn a_bomb_is_an_error_within_a_second() {
    let cases = [
        // Loops.
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x",
        "{% for i in range(99999) %}{% for j in 'a' * 99999 %}x{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% for x in [[[]]] recursive %}{{ loop(range(50)) }}{% endfor %}{{ range(99999) | sum(start=range(9)) }}",
        // Growing texts.
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = [n.s, n.s] | join %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = '%s%s' | format(n.s, n.s) %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = '{0}{0}'.format(n.s) %}{% endfor %}{{ n.s }}",
        "{% macro f(x, n) %}{% if n > 0 %}{{ f(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ f('ab', 60) }}",
        "{% set n = namespace(s='a') %}{% for i in range(99999) %}{% set n.s = n.s ~ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' %}{% endfor %}",
        "{% filter replace('a', 'a' * 9999) %}{{ 'a' * 9999 }}{% endfilter %}",
        "{{ 'a' * 100000000 }}",
        "{{ ('a' * 1000000) | replace('a', 'a' * 1000) }}",
        "{{ ('a' * 1000000) | replace('', 'a' * 1000) }}",
        "{{ ('a' * 1000000).replace('a', 'a' * 1000) }}",
        "{{ range(99999) | join('a' * 1000000) }}",
        "{{ ('a' * 1000000).join(range(99999)) }}",
        "{{ messages | tojson(indent=1000000000000) }}",
        "{{ messages | tojson(separators=['a' * 3000000, 'b' * 3000000]) | length * range(99999) | length }}{{ 'x' | indent(n, true) }}",
        "{{ 'a' | indent(1000000000000, true) }}",
        "{{ ('a\n' * 1000000) | indent(10000) }}",
        "{{ 'a' | indent(width=1000000000000, first=true) }}",
        "{{ '%1000000000s' | format('a') }}",
        "{{ '%*d' | format(1000000000, 1) }}",
        "{{ '%.1000000000f' | format(1.5) }}",
        "{{ '{:1000000000}'.format('a') }}",
        "{{ '{:{}}'.format('a', 1000000000) }}",
        "{{ messages | batch(1000000000000, 'x') | list }}",
        "{{ messages | slice(1000000000, 'x') | list }}",
        "{{ ('aa' * 1000000) | map('replace', 'a', 'a' * 1000000) | list }}",
        // Growing lists.
        "{{ [1] * 1000000000000 }}",
        "{{ ([1] * 1000000000) | list | length }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = n.l + n.l %}{% endfor %}{{ n.l | length }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l == n.l + [] }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = {'a': n.l, 'b': n.l} %}{% endfor %}{{ n.l | tojson }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = dict(a=n.l, b=n.l) %}{% endfor %}{{ n.l }}",
        "{{ range(99999) | map('string') | list | batch(2) | map('list') | list | sum(start=[]) }}",
        "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = n.l + [range(99999)] %}{% endfor %}",
        // Depth.
        "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(99999) %}{% set n.l = n.l | batch(1) %}{% endfor %}{{ n.l }}",
        "{% set n = namespace(l={}) %}{% for i in range(99999) %}{% set n.l = {'a': n.l} %}{% endfor %}{{ n.l | tojson }}",
        "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f([]) }}",
        "{{ raise_exception('a' * 3000000) }}",
        "{% set n = namespace() %}{% set n.s = n %}{{ n }}",
        "{% set n = namespace() %}{% set n.s = [{'a': n}] %}{{ n == n }}",
        "{% set n = namespace() %}{% set n.s = dict(a=n) %}{{ n }}",
        "{% set n = namespace() %}{% set m = namespace(a=n) %}{{ m }}",
        // Comparing and searching.
        "{% set a = 'a' * 3000000 %}{% set b = 'a' * 3000000 %}{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
        "{% set a = 'a' * 3000000 %}{% for i in range(99999) %}{% if 'b' in a %}{% endif %}{% endfor %}",
        "{% set a = 'a' * 3000000 %}{% for i in range(99999) %}{% if a is eq(a) %}{% endif %}{{ a | length }}{% endfor %}",
        "{% set a = range(99999) | list %}{% for i in a %}{% if i in a %}{% endif %}{% endfor %}",
        "{{ 'abc'.count('') }}{{ raise_exception('refused') }}",
        // Others' files.
        "{% include 'config.json' %}",
        "{% import 'config.json' as x %}",
    ];
    let mut failures = Vec::new();
    for source in cases {
        let start = Instant::now();
        let outcome = rendered(source);
        // Unoptimised builds on a busy machine included.
        let slow = start.elapsed().as_secs() >= 6;
        if slow || outcome.as_ref().map_or_else(String::len, |_| usize::MAX) > 3000 {
            failures.push(format!(
                "{source:.120}: {outcome:.120?} after {:?}",
                start.elapsed()
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn long_chains_and_deep_nesting_do_not_parse() {
    let many = |text: &str| text.repeat(100_000);
    let cases = [
        format!("{{{{ 1{} }}}}", many("+1")),
        format!("{{{{ 'a'{} }}}}", many("~'a'")),
        format!("{{{{ a{} }}}}", many(".a")),
        format!("{{{{ a{} }}}}", many("[0]")),
        format!("{{{{ a{} }}}}", many("()")),
        format!("{{{{ a{} }}}}", many("|trim")),
        format!("{{{{ a{} }}}}", many(" is defined")),
        format!("{{{{ {}a }}}}", many("not ")),
        format!("{{{{ {}1 }}}}", many("-")),
        format!("{{{{ 1{} }}}}", many(" < 1")),
        format!("{{{{ 1{} }}}}", many(" if 1")),
        format!("{{{{ 1{} }}}}", many(" if 1 else 1")),
        format!("{{{{ {}1{} }}}}", many("("), many(")")),
        format!("{{{{ {}1{} }}}}", many("["), many("]")),
        format!("{}x{}", many("{% if 1 %}"), many("{% endif %}")),
        format!("{{% if 1 %}}{}{{% endif %}}", many("{% elif 1 %}")),
        format!("{{% set {}a = 1 %}}", many("(")),
        format!("{}{}", many("{% for a in b %}"), many("{% endfor %}")),
    ];
    for source in cases {
        let error = rendered(&source).unwrap_err();
        assert!(error.len() < 1000, "{:.60}: {error:.200}", source);
    }
}

#[test]
fn what_usual_templates_do_stays_as_it_is() {
    let cases = [
        (
            "{% set n = namespace(l=[], s='') %}{% for i in range(300) %}{% set n.l = n.l + [i] %}{% set n.s = n.s ~ i %}{% endfor %}{{ n.l | length }} {{ n.s | length }}",
            "300 790",
        ),
        (
            "{{ {'a': {'b': 1}}.a.b + 2 * 3 - 4 // 3 }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ 1.5 }} {{ -3 | abs }} {{ (-3) | abs }}",
            "6 3 1024 1.5 3 3",
        ),
        (
            "{% macro m(a, b='x') %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}{% macro w(c) %}<{{ caller(c) }}>{% endmacro %}{% call(x) w('q') %}{{ x }}{% endcall %}",
            "[1x][12]<q>",
        ),
        (
            "{% for k, v in {'a': 1, 'b': 2}.items() if v > 1 %}{{ k }}={{ v }}{% else %}none{% endfor %}",
            "b=2",
        ),
        (
            "{% for a in [] %}x{% else %}none{% endfor %}{% for (a, b) in [(1, 2)] %}{{ a + b }}{% endfor %}",
            "none3",
        ),
        (
            "{% set (a, b) = (1, 2) %}{% set x %}<{{ a }}>{% endset %}{{ x }}{{ b }}{% with c = 3 %}{{ c }}{% endwith %}",
            "<1>23",
        ),
        (
            "{% if 0 %}a{% elif 1 < 2 <= 2 %}b{% else %}c{% endif %}{{ 'y' if not none else 'n' }}{{ 'a' not in 'bc' }}",
            "byTrue",
        ),
        (
            "{{ messages[0]['content'][:2] | upper }}{{ messages[-1:] | length }}{{ 'abc'[::-1] }}{{ messages[0].get('x', 'd') }}",
            "HI1cbad",
        ),
        (
            "{{ 'a\\\"b\\n' ~ \"c'd\" }}{% raw %}{{ x }}{% endraw %}\"\\{# no #}",
            "a\"b\nc'd{{ x }}\"\\",
        ),
        (
            "{% for i in [1, [2, [3]]] recursive %}{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}{% endif %}{% endfor %}",
            "1(2(3))",
        ),
        (
            "{% filter upper %}a{{ 'b' }}{% endfilter %}{% set x | trim | upper %} c {% endset %}{{ x }}",
            "ABC",
        ),
        (
            "{% for i in range(3) %}{{ loop.index }}{{ loop.cycle('a', 'b') }}{{ '' if loop.last else ',' }}{% endfor %}",
            "1a,2b,3a",
        ),
        (
            "{{ [1, 2, 3, 4] | batch(2) | list }}{{ ['b', 'a'] | sort | join('-') }}{{ 'a b'.split() }}{{ dict(a=1).a }}",
            "[[1, 2], [3, 4]]a-b['a', 'b']1",
        ),
        (
            "{{ '%05.1f|%s' | format(2.25, 'x') }}{{ '{}-{}'.format(1, 'b') }}{{ 'a\nb' | indent(2) }}{{ 'aXa'.replace('X', 'yy') }}",
            "002.2|x1-ba\n  bayya",
        ),
        (
            "{% set ns = namespace(found=false) %}{% for m in messages %}{% set ns.found = true %}{% endfor %}{{ ns.found }}{{ 1e3 }}{{ ns }}{{ ns is mapping }}{{ ns.get('found') }}{{ ns | length }}",
            "True1000.0{'found': True}TrueTrue1",
        ),
        (
            "{{ nothing is defined }}{{ nothing | default('d') }}{{ messages is sequence }}{{ (messages | tojson)[:3] }}",
            "FalsedTrue[{\"",
        ),
    ];
    for (source, expected) in cases {
        assert_eq!(rendered(source).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn errors_name_the_line_of_the_template() {
    let error =
        rendered("a\n\n{% if true %}\n{{ raise_exception('no') }}\n{% endif %}").unwrap_err();
    assert!(error.contains("template:4"), "{error}");
    let error = rendered("a\n{{ 1 +\n messages.x() }}").unwrap_err();
    assert!(error.contains("template:"), "{error}");
}

#[test]
fn a_long_conversation_stays_far_below_the_limits() {
    let messages: Vec<_> = (0..20_000)
        .map(|i| json!({"role": if i % 2 == 0 { "user" } else { "assistant" }, "content": "word ".repeat(40)}))
        .collect();
    let source = "{% set ns = namespace(last=0, seen='') %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}\
        {% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content | trim) ~ '<|im_end|>\n' }}\
        {% if loop.index0 > ns.last and '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}{% endfor %}";
    let mut env = environment(UndefinedBehavior::Lenient, None);
    compile(&mut env, source).unwrap();
    let text = render(&env, from_json(&json!({"messages": messages}))).unwrap();
    assert!(text.len() > 4_000_000);
}
