//! Expressions of a template that is written again.

use std::fmt::Write as _;

use minijinja::machinery::ast::{
    BinOpKind, CallArg, Compare, CompareOpKind, Expr, Filter, UnaryOpKind,
};
use minijinja::value::ValueKind;

use super::Writer;
use crate::data::jinja::budget::{BOUNDED, COUNTED};

/// Filters that return what they are given, or a part of it.
const SELECTING: [&str; 6] = ["default", "d", "first", "last", "attr", "safe"];
/// Functions that return objects with a state.
const STATEFUL: [&str; 3] = ["namespace", "cycler", "joiner"];
/// Objects whose methods belong to the engine.
const ENGINE: [&str; 2] = ["self", "loop"];

/// Whether an expression is written as a constant.
pub(super) fn is_constant(expr: &Expr<'_>) -> bool {
    matches!(expr, Expr::Const(_))
}

/// Whether a value of the expression is within the limits, and a size that was charged for.
fn is_charged(expr: &Expr<'_>) -> bool {
    match expr {
        Expr::Const(_) | Expr::Test(_) | Expr::Compare(_) | Expr::UnaryOp(_) => true,
        Expr::List(_) | Expr::Map(_) | Expr::Slice(_) | Expr::Call(_) => true,
        Expr::Filter(filter) => !SELECTING.contains(&filter.name),
        Expr::BinOp(op) => !matches!(op.op, BinOpKind::ScAnd | BinOpKind::ScOr),
        _ => false,
    }
}

impl Writer {
    /// The filters of a block.
    pub(super) fn chain(&mut self, filter: &Filter<'_>) {
        if let Some(Expr::Filter(inner)) = &filter.expr {
            self.chain(inner);
            self.put(" | ");
        }
        self.put(filter.name);
        self.args(&filter.args);
    }

    /// An expression in parentheses.
    pub(super) fn group(&mut self, expr: &Expr<'_>) {
        self.put("(");
        self.expr(expr);
        self.put(")");
    }

    /// `((..)|filter)`
    pub(super) fn wrapped(&mut self, filter: &str, write: impl FnOnce(&mut Self)) {
        self.put("((");
        write(self);
        let _ = write!(self.out, ")|{filter})");
    }

    /// A value that something is done with: charged for its size. A variable is written so that its name can be read off.
    fn counted(&mut self, expr: &Expr<'_>) {
        match expr {
            Expr::Var(var) if ENGINE.contains(&var.id) => self.put(var.id),
            Expr::Var(var) => {
                let _ = write!(self.out, "({}|{COUNTED})", var.id);
            }
            _ if is_charged(expr) => self.group(expr),
            _ => self.wrapped(COUNTED, |writer| writer.expr(expr)),
        }
    }

    pub(super) fn expr(&mut self, expr: &Expr<'_>) {
        self.at(expr.span());
        match expr {
            Expr::Var(var) => self.put(var.id),
            Expr::Const(constant) => self.constant(&constant.value),
            Expr::UnaryOp(op) => {
                self.put(match op.op {
                    UnaryOpKind::Not => "(not ",
                    UnaryOpKind::Neg => "(-",
                });
                self.group(&op.expr);
                self.put(")");
            }
            Expr::BinOp(op) => self.operation(op.op, &op.left, &op.right),
            Expr::Compare(compare) => self.comparison(compare),
            Expr::IfExpr(choice) => {
                self.put("(");
                self.group(&choice.true_expr);
                self.put(" if ");
                self.group(&choice.test_expr);
                if let Some(other) = &choice.false_expr {
                    self.put(" else ");
                    self.group(other);
                }
                self.put(")");
            }
            Expr::Filter(filter) => self.filter(filter),
            Expr::Test(test) => {
                self.put("(");
                self.counted(&test.expr);
                self.put(" is ");
                self.put(test.name);
                self.args(&test.args);
                self.put(")");
            }
            Expr::GetAttr(attr) => {
                self.receiver(&attr.expr);
                self.put(".");
                self.put(attr.name);
            }
            Expr::GetItem(item) => {
                self.receiver(&item.expr);
                self.put("[");
                self.expr(&item.subscript_expr);
                self.put("]");
            }
            Expr::Slice(slice) => self.wrapped(BOUNDED, |writer| {
                writer.counted(&slice.expr);
                writer.put("[");
                let part = |writer: &mut Self, part: &Option<Expr<'_>>| {
                    if let Some(expr) = part {
                        writer.expr(expr);
                    }
                };
                part(writer, &slice.start);
                writer.put(":");
                part(writer, &slice.stop);
                if slice.step.is_some() {
                    writer.put(":");
                    part(writer, &slice.step);
                }
                writer.put("]");
            }),
            Expr::Call(call) => match &call.expr {
                Expr::Var(var) if STATEFUL.contains(&var.id) => {
                    self.put(var.id);
                    self.bounded_args(&call.args);
                }
                _ => self.wrapped(BOUNDED, |writer| writer.call(&call.expr, &call.args)),
            },
            Expr::List(list) => self.wrapped(BOUNDED, |writer| {
                writer.put("[");
                for (index, item) in list.items.iter().enumerate() {
                    writer.put(if index > 0 { ", " } else { "" });
                    writer.expr(item);
                }
                writer.put("]");
            }),
            Expr::Map(map) => self.wrapped(BOUNDED, |writer| {
                writer.put("{");
                for (index, (key, value)) in map.keys.iter().zip(&map.values).enumerate() {
                    writer.put(if index > 0 { ", " } else { "" });
                    writer.expr(key);
                    writer.put(": ");
                    writer.expr(value);
                }
                // Two closing braces would end a tag.
                writer.put(" }");
            }),
        }
    }

    /// What an attribute or an item is taken from.
    fn receiver(&mut self, expr: &Expr<'_>) {
        match expr {
            Expr::Var(_) | Expr::GetAttr(_) | Expr::GetItem(_) => self.expr(expr),
            _ => self.group(expr),
        }
    }

    fn operation(&mut self, op: BinOpKind, left: &Expr<'_>, right: &Expr<'_>) {
        let sign = match op {
            BinOpKind::Eq => "==",
            BinOpKind::Ne => "!=",
            BinOpKind::Lt => "<",
            BinOpKind::Lte => "<=",
            BinOpKind::Gt => ">",
            BinOpKind::Gte => ">=",
            BinOpKind::ScAnd => "and",
            BinOpKind::ScOr => "or",
            BinOpKind::Add => "+",
            BinOpKind::Sub => "-",
            BinOpKind::Mul => "*",
            BinOpKind::Div => "/",
            BinOpKind::FloorDiv => "//",
            BinOpKind::Rem => "%",
            BinOpKind::Pow => "**",
            BinOpKind::Concat => "~",
            BinOpKind::In => "in",
        };
        let plain = |writer: &mut Self| {
            writer.group(left);
            let _ = write!(writer.out, " {sign} ");
            writer.group(right);
        };
        match op {
            BinOpKind::Add => self.wrapped(BOUNDED, plain),
            // The compiler would compute a product of constants. The engine refuses strings above 100 MB.
            BinOpKind::Concat | BinOpKind::Mul => self.wrapped(BOUNDED, |writer| {
                match op {
                    BinOpKind::Mul => writer.wrapped(BOUNDED, |writer| writer.expr(left)),
                    _ => writer.counted(left),
                }
                let _ = write!(writer.out, " {sign} ");
                writer.counted(right);
            }),
            BinOpKind::Eq
            | BinOpKind::Ne
            | BinOpKind::Lt
            | BinOpKind::Lte
            | BinOpKind::Gt
            | BinOpKind::Gte
                if !is_constant(left) && !is_constant(right) =>
            {
                self.compared(sign, left, right);
            }
            BinOpKind::In if !matches!(right, Expr::Const(_)) => self.compared(sign, left, right),
            _ => {
                self.put("(");
                plain(self);
                self.put(")");
            }
        }
    }

    fn compared(&mut self, sign: &str, left: &Expr<'_>, right: &Expr<'_>) {
        self.put("(");
        self.counted(left);
        let _ = write!(self.out, " {sign} ");
        self.counted(right);
        self.put(")");
    }

    fn comparison(&mut self, compare: &Compare<'_>) {
        self.put("(");
        self.counted(&compare.expr);
        for next in &compare.ops {
            self.put(match next.op {
                CompareOpKind::Eq => " == ",
                CompareOpKind::Ne => " != ",
                CompareOpKind::Lt => " < ",
                CompareOpKind::Lte => " <= ",
                CompareOpKind::Gt => " > ",
                CompareOpKind::Gte => " >= ",
                CompareOpKind::In => " in ",
                CompareOpKind::NotIn => " not in ",
            });
            self.counted(&next.expr);
        }
        self.put(")");
    }

    fn filter(&mut self, filter: &Filter<'_>) {
        let write = |writer: &mut Self| {
            if let Some(expr) = &filter.expr {
                writer.counted(expr);
                writer.put("|");
            }
            writer.put(filter.name);
            writer.args(&filter.args);
        };
        if SELECTING.contains(&filter.name) {
            self.put("(");
            write(self);
            self.put(")");
        } else {
            self.wrapped(BOUNDED, write);
        }
    }

    pub(super) fn call(&mut self, callee: &Expr<'_>, args: &[CallArg<'_>]) {
        match callee {
            Expr::Var(var) => self.put(var.id),
            Expr::GetAttr(method) => {
                self.counted(&method.expr);
                self.put(".");
                self.put(method.name);
            }
            _ => self.group(callee),
        }
        self.args(args);
        if args.is_empty() {
            self.put("()");
        }
    }

    /// Arguments in parentheses, which are left out without any.
    fn args(&mut self, args: &[CallArg<'_>]) {
        self.arguments(args, Self::expr);
    }

    fn bounded_args(&mut self, args: &[CallArg<'_>]) {
        self.arguments(args, |writer, expr| match is_constant(expr) {
            true => writer.expr(expr),
            false => writer.wrapped(BOUNDED, |writer| writer.expr(expr)),
        });
        if args.is_empty() {
            self.put("()");
        }
    }

    fn arguments(&mut self, args: &[CallArg<'_>], mut write: impl FnMut(&mut Self, &Expr<'_>)) {
        for (index, arg) in args.iter().enumerate() {
            self.put(if index > 0 { ", " } else { "(" });
            match arg {
                CallArg::Pos(expr) => write(self, expr),
                CallArg::Kwarg(name, expr) => {
                    self.put(name);
                    self.put("=");
                    write(self, expr);
                }
                CallArg::PosSplat(expr) => {
                    self.put("*");
                    write(self, expr);
                }
                CallArg::KwargSplat(expr) => {
                    self.put("**");
                    write(self, expr);
                }
            }
        }
        self.put(if args.is_empty() { "" } else { ")" });
    }

    fn constant(&mut self, value: &minijinja::Value) {
        match (value.kind(), value.as_str()) {
            (_, Some(text)) => self.text(text),
            (ValueKind::Number, _) if !value.is_integer() => {
                let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
                let text = match number.is_finite() {
                    // The lexer reads an exponent after a fraction only.
                    true if format!("{number:?}").contains('e') => format!("{number:.1}"),
                    true => format!("{number:?}"),
                    false => "1.0e999".to_owned(),
                };
                self.put(&text);
            }
            _ => {
                let _ = write!(self.out, "{value}");
            }
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.put("\\\""),
                '\\' => self.put("\\\\"),
                '\n' => self.put("\\n"),
                '\r' => self.put("\\r"),
                '\t' => self.put("\\t"),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}
