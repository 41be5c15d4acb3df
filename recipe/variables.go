package recipe

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
)

// settable are the variables of package main that release tools set by
// convention, sorted.
var settable = []string{"commit", "date", "version"}

// stringVars are those of settable that files declare as package-level string
// variables which the linker can set: without a value, or with a literal one.
// A file that is cut off or does not parse has none.
func stringVars(files [][]byte) []string {
	var found []string
	for _, content := range files {
		f, err := parser.ParseFile(token.NewFileSet(), "", content, parser.SkipObjectResolution)
		if err != nil {
			continue
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, s := range g.Specs {
				found = append(found, linkable(s.(*ast.ValueSpec))...)
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// linkable are the variables of settable in one declaration that -X can set.
func linkable(s *ast.ValueSpec) (names []string) {
	if s.Type != nil {
		if t, ok := s.Type.(*ast.Ident); !ok || t.Name != "string" {
			return nil
		}
	} else if len(s.Values) == 0 {
		return nil
	}
	for i, name := range s.Names {
		if !slices.Contains(settable, name.Name) {
			continue
		}
		if len(s.Values) > 0 && (len(s.Values) != len(s.Names) || !isString(s.Values[i])) {
			continue
		}
		names = append(names, name.Name)
	}
	return names
}

func isString(e ast.Expr) bool {
	l, ok := e.(*ast.BasicLit)
	return ok && l.Kind == token.STRING
}
