package diag

import (
	"context"
	"errors"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/kube"
)

// cluster says where the API server is.
type cluster func() (kube.Config, error)

// reviews makes the API server decide about access.
type reviews struct {
	client *kube.Client
	access *api.Kubernetes
}

// kubernetes is the access by the API server's word: one for all listeners, so that its bounds are those of the node. It
// runs with p.mu held.
func (p *Plugin) kubernetes() (api.Access, error) {
	if p.reviews == nil {
		config, err := p.cluster()
		if err != nil {
			return nil, err
		}
		client := kube.NewClient(config)
		p.reviews = &reviews{client, api.NewKubernetes(reviewBy(client), p.log)}
	}
	return p.reviews.access, nil
}

// forgetKubernetes ends reviews that are under way. It runs with p.mu held.
func (p *Plugin) forgetKubernetes() {
	if p.reviews != nil {
		p.reviews.access.Close()
		p.reviews.client.Close()
		p.reviews = nil
	}
}

// reviewBy identifies the user of the token (TokenReview), and then checks the user's rights (SubjectAccessReview).
func reviewBy(client *kube.Client) api.Review {
	return func(ctx context.Context, token string, role api.Role) (api.Verdict, string, error) {
		user, known, err := client.ReviewToken(ctx, token)
		if err != nil {
			return api.Stranger, "", reviewError(err)
		}
		if !known {
			return api.Stranger, "", nil
		}
		allowed, err := client.ReviewAccess(ctx, &user, kube.Attributes{Verb: api.RoleVerb(role), Group: api.Group, Version: "v1alpha1", Resource: role.String()})
		switch {
		case err != nil:
			return api.Stranger, "", reviewError(err)
		case !allowed:
			return api.Denied, user.Name, nil
		}
		return api.Allowed, user.Name, nil
	}
}

func reviewError(err error) error {
	e := &api.ReviewError{Err: err}
	if errors.Is(err, kube.ErrNoReviews) {
		e.Hint = kube.ErrNoReviews.Error()
	}
	return e
}
