//! A template as another one that keeps within a [`super::budget`] when it is rendered.
//!
//! minijinja adds, joins and multiplies values itself and asks nobody. So a template is parsed and written again from its syntax tree,
//! with a filter around each expression that builds a value, and around each value that is compared or searched. Its text becomes
//! constants, which are printed, and so charged, like all else. Lines keep their numbers.
//!
//! Before that, chains and nesting are limited: the parser and the compiler call themselves for each link.

mod expressions;

use std::fmt::Write as _;

use minijinja::machinery::ast::{Expr, IfCond, Macro, Stmt};
use minijinja::machinery::{Span, Token, WhitespaceConfig, parse, tokenize};
use minijinja::{Environment, Error, ErrorKind};

use self::expressions::is_constant;
use super::budget::{BOUNDED, UNAVAILABLE};

/// Most operators, attributes, filters and brackets of one tag.
const LINKS: usize = 500;
/// Most `elif` of a template.
const ELIFS: usize = 500;
/// Longest template, in bytes.
const LONGEST: usize = 4 << 20;

/// The template to compile instead of `source` in this environment.
///
/// # Errors
/// If it does not parse, or has longer chains or deeper nesting than any usual one.
pub(super) fn rewrite(env: &Environment<'_>, name: &str, source: &str) -> Result<String, Error> {
    let whitespace = || WhitespaceConfig {
        keep_trailing_newline: env.keep_trailing_newline(),
        lstrip_blocks: env.lstrip_blocks(),
        trim_blocks: env.trim_blocks(),
    };
    check_links(source, whitespace())?;
    let tree = parse(source, name, Default::default(), whitespace())?;
    let mut writer = Writer {
        out: String::with_capacity(source.len() * 2),
        line: 1,
        escapes: source.contains("autoescape"),
    };
    if let Stmt::Template(template) = &tree {
        writer.statements(&template.children);
    }
    Ok(writer.out)
}

fn too_long(what: &str, limit: usize, span: Span) -> Error {
    Error::new(
        ErrorKind::SyntaxError,
        format!("line {}: more than {limit} {what}", span.start_line),
    )
}

fn check_links(source: &str, whitespace: WhitespaceConfig) -> Result<(), Error> {
    if source.len() > LONGEST {
        return Err(too_long("bytes of a template", LONGEST, Span::default()));
    }
    let (mut links, mut elifs) = (0, 0);
    for token in tokenize(source, false, Default::default(), whitespace) {
        let (token, span) = token?;
        match token {
            Token::VariableStart | Token::BlockStart => links = 0,
            Token::TemplateData(_) | Token::VariableEnd | Token::BlockEnd => {}
            Token::Ident("elif") => elifs += 1,
            Token::Ident("and" | "or" | "not" | "is" | "in" | "if" | "else") => links += 1,
            Token::Ident(_) | Token::Str(_) | Token::String(_) | Token::Comma | Token::Colon => {}
            Token::Int(_) | Token::Int128(_) | Token::Float(_) | Token::Assign => {}
            Token::ParenClose | Token::BracketClose | Token::BraceClose => {}
            _ => links += 1,
        }
        if links > LINKS {
            return Err(too_long("operators in one tag", LINKS, span));
        }
        if elifs > ELIFS {
            return Err(too_long("`elif`", ELIFS, span));
        }
    }
    Ok(())
}

struct Writer {
    out: String,
    line: u16,
    /// Whether text could be escaped, if it were not marked as safe.
    escapes: bool,
}

impl Writer {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// Begins what was in the line of `span`. Only for use within a tag.
    fn at(&mut self, span: Span) {
        while self.line < span.start_line {
            self.out.push('\n');
            self.line += 1;
        }
    }

    fn statements(&mut self, statements: &[Stmt<'_>]) {
        for statement in statements {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &Stmt<'_>) {
        match statement {
            Stmt::Template(template) => self.statements(&template.children),
            Stmt::EmitExpr(emit) => {
                self.put("{{");
                self.at(emit.span());
                self.put(" ");
                self.expr(&emit.expr);
                self.put(" }}");
            }
            Stmt::EmitRaw(text) => {
                self.put("{{ ");
                self.text(text.raw);
                self.put(if self.escapes { "|safe }}" } else { " }}" });
            }
            Stmt::ForLoop(each) => {
                self.begin("for ", each.span());
                self.target(&each.target);
                self.put(" in ");
                self.group(&each.iter);
                if let Some(filter) = &each.filter_expr {
                    self.put(" if ");
                    self.group(filter);
                }
                self.put(if each.recursive {
                    " recursive %}"
                } else {
                    " %}"
                });
                self.statements(&each.body);
                if !each.else_body.is_empty() {
                    self.put("{% else %}");
                    self.statements(&each.else_body);
                }
                self.put("{% endfor %}");
            }
            Stmt::IfCond(cond) => {
                self.begin("if ", cond.span());
                self.branches(cond);
                self.put("{% endif %}");
            }
            Stmt::WithBlock(with) => {
                self.begin("with ", with.span());
                for (index, (target, value)) in with.assignments.iter().enumerate() {
                    self.put(if index > 0 { ", " } else { "" });
                    self.target(target);
                    self.put(" = ");
                    self.group(value);
                }
                self.body(&with.body, "endwith");
            }
            Stmt::Set(set) => {
                self.begin("set ", set.span());
                self.target(&set.target);
                self.put(" = ");
                // Refuses a namespace in a namespace: it could hold itself.
                match &set.target {
                    Expr::GetAttr(_) if !is_constant(&set.expr) => {
                        self.wrapped(BOUNDED, |writer| writer.expr(&set.expr));
                    }
                    _ => self.group(&set.expr),
                }
                self.put(" %}");
            }
            Stmt::SetBlock(set) => {
                self.begin("set ", set.span());
                self.target(&set.target);
                if let Some(Expr::Filter(filter)) = &set.filter {
                    self.put(" | ");
                    self.chain(filter);
                }
                self.body(&set.body, "endset");
            }
            Stmt::AutoEscape(block) => {
                self.begin("autoescape ", block.span());
                self.group(&block.enabled);
                self.body(&block.body, "endautoescape");
            }
            Stmt::FilterBlock(block) => {
                self.begin("filter ", block.span());
                if let Expr::Filter(filter) = &block.filter {
                    self.chain(filter);
                }
                self.body(&block.body, "endfilter");
            }
            Stmt::Block(block) => {
                self.begin("block ", block.span());
                self.put(block.name);
                self.put(if block.required { " required" } else { "" });
                self.body(&block.body, "endblock");
            }
            Stmt::Import(import) => self.unavailable("import", import.span()),
            Stmt::FromImport(import) => self.unavailable("from", import.span()),
            Stmt::Extends(extends) => self.unavailable("extends", extends.span()),
            Stmt::Include(include) => self.unavailable("include", include.span()),
            Stmt::Macro(declared) => {
                self.begin("macro ", declared.span());
                self.put(declared.name);
                self.parameters(declared);
                self.body(&declared.body, "endmacro");
            }
            Stmt::CallBlock(block) => {
                self.begin("call", block.span());
                self.parameters(&block.macro_decl);
                self.put(" ");
                self.call(&block.call.expr, &block.call.args);
                self.body(&block.macro_decl.body, "endcall");
            }
            Stmt::Continue(statement) => {
                self.begin("continue", statement.span());
                self.put(" %}");
            }
            Stmt::Break(statement) => {
                self.begin("break", statement.span());
                self.put(" %}");
            }
            Stmt::Do(statement) => {
                self.begin("do ", statement.span());
                self.call(&statement.call.expr, &statement.call.args);
                self.put(" %}");
            }
        }
    }

    fn begin(&mut self, keyword: &str, span: Span) {
        self.put("{%");
        self.at(span);
        self.put(" ");
        self.put(keyword);
    }

    fn body(&mut self, body: &[Stmt<'_>], end: &str) {
        self.put(" %}");
        self.statements(body);
        let _ = write!(self.out, "{{% {end} %}}");
    }

    fn branches(&mut self, cond: &IfCond<'_>) {
        self.group(&cond.expr);
        self.put(" %}");
        self.statements(&cond.true_body);
        match cond.false_body.as_slice() {
            [] => {}
            [Stmt::IfCond(next)] => {
                self.begin("elif ", next.expr.span());
                self.branches(next);
            }
            body => {
                self.put("{% else %}");
                self.statements(body);
            }
        }
    }

    fn unavailable(&mut self, what: &str, span: Span) {
        self.put("{{");
        self.at(span);
        let _ = write!(self.out, " '{what}'|{UNAVAILABLE} }}}}");
    }

    fn parameters(&mut self, declared: &Macro<'_>) {
        self.put("(");
        let required = declared.args.len() - declared.defaults.len().min(declared.args.len());
        for (index, arg) in declared.args.iter().enumerate() {
            self.put(if index > 0 { ", " } else { "" });
            self.target(arg);
            if let Some(default) = index
                .checked_sub(required)
                .and_then(|at| declared.defaults.get(at))
            {
                self.put("=");
                self.group(default);
            }
        }
        self.put(")");
    }

    /// What is assigned to.
    fn target(&mut self, target: &Expr<'_>) {
        match target {
            Expr::Var(var) => self.put(var.id),
            Expr::GetAttr(attr) => {
                self.target(&attr.expr);
                self.put(".");
                self.put(attr.name);
            }
            Expr::List(list) => {
                self.put("(");
                for (index, item) in list.items.iter().enumerate() {
                    self.put(if index > 0 { ", " } else { "" });
                    self.target(item);
                }
                self.put(if list.items.len() == 1 { ",)" } else { ")" });
            }
            _ => {}
        }
    }
}
